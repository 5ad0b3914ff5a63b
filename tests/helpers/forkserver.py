"""New processes that begin with torch imported: a start takes 0.2 s instead of 4."""

from multiprocessing import get_context

# One server, and thus one list of what it imports, for all files of tests. It leaves out modules
# that it cannot find, as those of tests in folders that pytest was not asked to run.
PRELOAD = ["main", "linear", "helpers.programs", "helpers.groups"]
PRELOAD += ["test_processes", "test_processes_runs"]
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOAD)
