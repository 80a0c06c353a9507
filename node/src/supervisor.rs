//! What systemd is told (sd_notify): ready, reloading, stopping, and a line of status.
//!
//!     NOTIFY_SOCKET ◀── one datagram per change         `systemctl start` returns when the node is ready
//!
//! Without NOTIFY_SOCKET nobody is told. A datagram that is lost harms nothing but that knowledge.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// Who started this process, if it wants to know how that is. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    to: Option<Arc<(UnixDatagram, SocketAddr)>>,
    ready: Arc<AtomicBool>,
}

impl Supervisor {
    /// The one that the environment names.
    pub fn from_environment() -> Self {
        Self::at(std::env::var_os("NOTIFY_SOCKET").as_deref())
    }

    fn at(name: Option<&OsStr>) -> Self {
        let to = name.and_then(|name| {
            open(name)
                .inspect_err(|error| tracing::warn!(%error, ?name, "NOTIFY_SOCKET cannot be used: systemd is not told"))
                .ok()
        });
        Supervisor {
            to: to.map(Arc::new),
            ready: Arc::default(),
        }
    }

    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={status}"));
    }

    pub fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
        self.tell("READY=1\nSTATUS=serving");
    }

    /// The configuration is being read; [`reloaded`](Self::reloaded) follows.
    pub fn reloading(&self) {
        // READY would end the start of a node that is not ready yet.
        if self.ready.load(Ordering::Relaxed) {
            let now = clock_gettime(ClockId::Monotonic);
            let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        }
    }

    pub fn reloaded(&self) {
        if self.ready.load(Ordering::Relaxed) {
            self.tell("READY=1");
        }
    }

    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping");
    }

    fn tell(&self, what: &str) {
        let Some(to) = &self.to else { return };
        if let Err(error) = to.0.send_to_addr(what.as_bytes(), &to.1) {
            tracing::warn!(%error, what, "systemd was not told");
        }
    }
}

/// A path, or `@` and a name of the abstract namespace.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither a path nor a name with @")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_hears_of_every_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let heard = || {
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let supervisor = Supervisor::at(Some(path.as_os_str()));
        // Not ready yet: a reload says nothing, least of all that it is.
        supervisor.reloading();
        supervisor.status("during");
        supervisor.reloaded();
        assert_eq!(heard(), "STATUS=during");
        supervisor.ready();
        assert_eq!(heard(), "READY=1\nSTATUS=serving");
        supervisor.reloading();
        supervisor.reloaded();
        assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(heard(), "READY=1");
        supervisor.stopping();
        assert_eq!(heard(), "STOPPING=1\nSTATUS=stopping");
    }

    #[test]
    fn the_abstract_namespace_is_understood_and_nonsense_ignored() {
        let name = format!("lontra-supervisor-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Supervisor::at(Some(OsStr::new(&format!("@{name}")))).stopping();
        let mut buffer = [0; 64];
        assert_eq!(socket.recv(&mut buffer).unwrap(), "STOPPING=1\nSTATUS=stopping".len());
        Supervisor::at(Some(OsStr::new("vsock:2:1"))).ready();
        Supervisor::at(None).ready();
    }
}
