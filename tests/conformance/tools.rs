//! Runs the tools, each with a time limit.

use std::process::{Command, Output};
use std::time::Duration;

use local_pair::{run_bounded, run_tool};

const LIMIT: Duration = Duration::from_secs(120);

pub fn run(tool: &str, arguments: &[&str]) -> Output {
    run_bounded(Command::new(tool).args(arguments), LIMIT).unwrap()
}

/// Runs a tool that must succeed; returns its standard output.
pub fn succeed(tool: &str, arguments: &[&str]) -> String {
    run_tool(tool, arguments, LIMIT).unwrap()
}

/// Runs a libnbd script; `h` is a handle that is not yet connected and lets everything through.
pub fn python(uri: &str, script: &str) -> String {
    let prologue = "import nbd, sys, errno\n\
        uri = sys.argv[1]\n\
        h = nbd.NBD()\n\
        h.set_strict_mode(0)\n\
        def fails(want, call, *a, **k):\n\
        \x20   try:\n\
        \x20       call(*a, **k)\n\
        \x20   except nbd.Error as e:\n\
        \x20       assert e.errnum == want, f'{e.errno} for {want}: {e.string}'\n\
        \x20       return e.string\n\
        \x20   raise AssertionError(f'no {want} from {call.__name__}{a}')\n";
    let script = format!("{prologue}{script}");
    succeed("/usr/bin/python3", &["-c", &script, uri])
}
