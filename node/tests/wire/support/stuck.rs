//! One thread of a node that stands still, while the rest of it runs: a disk that does not answer, if it is the thread that
//! waits for the disk.
//!
//! A tracer stops the thread (ptrace: SEIZE, INTERRUPT) and holds it until its standard input ends; it ends with this
//! process too, and a thread whose tracer has ended runs on. Needs neither root nor a disk of its own, only that this machine
//! lets a process trace another one of the same user.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Runs on when this is dropped.
pub struct Stuck {
    tracer: Child,
}

impl Stuck {
    /// Stops the thread `name` of process `pid`; returns when it stands still. `None`, with the reason printed, where
    /// processes may not be traced.
    pub fn stop(pid: u32, name: &str) -> Option<Stuck> {
        const STOP: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
thread = int(sys.argv[1])
for request in (0x4206, 0x4207):
    if libc.ptrace(request, thread, None, None) != 0:
        print('ptrace: ' + os.strerror(ctypes.get_errno()), flush=True)
        sys.exit(1)
os.waitpid(thread, 0x40000000)
print('stopped', flush=True)
sys.stdin.read()
";
        let thread = thread_of(pid, name);
        let mut tracer = Command::new("python3")
            .args(["-c", STOP, &thread.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut said = String::new();
        let stdout = tracer.stdout.as_mut().expect("a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("a line");
        let stuck = Stuck { tracer };
        match said.trim() {
            "stopped" => Some(stuck),
            why => {
                assert!(why.starts_with("ptrace: "), "the tracer ended: {why}");
                println!("SKIPPED: processes may not be traced here: {why}");
                None
            }
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        drop(self.tracer.stdin.take());
        self.tracer.wait().ok();
    }
}

fn thread_of(pid: u32, name: &str) -> u32 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the node's threads");
    let mut threads = threads.flatten().map(|entry| entry.path());
    let found = threads.find(|path| {
        let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        comm.trim() == name
    });
    let found = found.unwrap_or_else(|| panic!("process {pid} has no thread {name}"));
    let id = found
        .file_name()
        .and_then(|id| id.to_str())
        .and_then(|id| id.parse().ok());
    id.expect("a thread's number")
}
