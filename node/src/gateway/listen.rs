//! Sockets that listen: one for each worker and listener, bound before anything is written.
//!
//! - TCP: one per worker on the same port (SO_REUSEPORT): the kernel spreads connections. `[::]` takes IPv4 too.
//! - Unix: one, which the workers share. A file that a dead process left is replaced; one that somebody listens at, or
//!   that is no socket, is not touched.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use crate::config::Config;
use crate::config::listener::{ListenAddress, Listener};

/// A worker's part of a listener.
pub struct Listening {
    /// Its place in `Config::all_listeners`.
    pub at: usize,
    pub socket: ListeningSocket,
    /// Connections of the listener, over all workers.
    pub open: Arc<AtomicI64>,
}

pub enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The file of a Unix socket: removed when dropped.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it meant it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Why clients cannot be listened for.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for clients on {listen} ({key}): {source}; {advice}")]
pub struct ListenError {
    pub key: String,
    pub listen: ListenAddress,
    pub source: io::Error,
    pub advice: &'static str,
}

/// The listeners of each worker, and the files that go with them.
///
/// # Errors
/// The first place that cannot be listened at.
pub fn listen(config: &Config) -> Result<(Vec<Vec<Listening>>, Vec<SocketFile>), ListenError> {
    let (mut workers, mut files) = (Vec::new(), Vec::new());
    workers.resize_with(usize::from(config.node.workers), Vec::new);
    for (at, listener) in config.all_listeners().iter().enumerate() {
        let key = match at {
            0 => "mqtt.listen".to_owned(),
            1 => "websocket.listen".to_owned(),
            _ => format!("listeners[{}].listen", at - 2),
        };
        let sockets = sockets(listener, workers.len(), &mut files).map_err(|source| ListenError {
            key,
            listen: listener.listen.clone(),
            advice: match &listener.listen {
                ListenAddress::Ip(_) => lontra_ops::http::advice(&source),
                ListenAddress::Path(_) => advice(&source),
            },
            source,
        })?;
        let open = Arc::new(AtomicI64::new(0));
        for (worker, socket) in workers.iter_mut().zip(sockets) {
            let open = open.clone();
            worker.push(Listening { at, socket, open });
        }
    }
    Ok((workers, files))
}

fn sockets(listener: &Listener, workers: usize, files: &mut Vec<SocketFile>) -> io::Result<Vec<ListeningSocket>> {
    match &listener.listen {
        ListenAddress::Ip(address) => {
            // SO_REUSEPORT would share the port with another process of this user: a plain bind finds that out.
            drop(bind(*address, false)?);
            (0..workers)
                .map(|_| bind(*address, true).map(ListeningSocket::Tcp))
                .collect()
        }
        ListenAddress::Path(path) => {
            let socket = bind_unix(path, listener.mode.0)?;
            files.push(SocketFile(path.clone()));
            (0..workers)
                .map(|_| socket.try_clone().map(ListeningSocket::Unix))
                .collect()
        }
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    use socket2::{Domain, SockAddr, Socket, Type};
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody connects before `listen`.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Removes the file of a socket that nobody listens at.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop that process, or choose another path",
        io::ErrorKind::AlreadyExists => "remove the file, or choose another path",
        io::ErrorKind::NotFound => "make its directory",
        io::ErrorKind::PermissionDenied => "choose a directory that this user can write",
        _ => "choose another path",
    }
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_nobody_listens_at_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mqtt.sock");
        let first = bind_unix(&path, 0o600).expect("a socket");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let taken = bind_unix(&path, 0o600).expect_err("it is in use");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "a dead process leaves its file");
        bind_unix(&path, 0o660).expect("the stale file is replaced");
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "precious").expect("written");
        let other = bind_unix(&path, 0o600).expect_err("it is no socket");
        assert_eq!(
            (other.kind(), fs::read(&path).expect("kept")),
            (io::ErrorKind::AlreadyExists, b"precious".to_vec())
        );
        let nowhere = bind_unix(&dir.path().join("no/mqtt.sock"), 0o600).expect_err("no directory");
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_file_goes_with_its_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mqtt.sock");
        let _socket = bind_unix(&path, 0o600).expect("a socket");
        drop(SocketFile(path.clone()));
        assert!(!path.exists());
    }

    #[test]
    fn all_addresses_of_ipv6_are_those_of_ipv4_too() {
        let listener = match bind("[::]:0".parse().expect("an address"), true) {
            Ok(listener) => listener,
            // A machine without IPv6.
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let port = listener.local_addr().expect("bound").port();
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("IPv4");
    }
}
