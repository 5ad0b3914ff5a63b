"""Images, data sets and views."""
