"""What the paper and this project measured: rows, studies, results and pictures of them."""
