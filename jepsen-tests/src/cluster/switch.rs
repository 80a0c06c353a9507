//! An Ethernet switch in user space between the TAP devices of nodes and harness: what `tc netem` does, on kernels without
//! it, per directed pair, seeded.
//!
//!     TAP of port i ──read──▶ destination MAC = port j ──▶ [shaper i→j] ──write──▶ TAP of port j
//!
//! Nobody is asked who has an address (`isolate.rs`), so frames to groups are of no use and dropped. The operator ports are
//! exempt from all rules: the harness must see what goes on behind a cut.

use super::isolate::mac;
use super::link::{CLIENTS, Frame, Port, Rules, Shaper, connection_of};
use super::relay::until;
use crate::random::Random;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// A thread that ends when this is dropped.
pub struct Switch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// `taps` by port: the harness, then the nodes. TCP's port `exempt` between harness and nodes knows no rules.
    ///
    /// # Errors
    /// No thread.
    pub fn start(taps: Vec<OwnedFd>, exempt: u16, rules: Rules, random: Random) -> std::io::Result<Switch> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("switch".into())
            .spawn(move || forward(&taps, exempt, Shaper::new(rules, random), &stopped))?;
        Ok(Switch {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The devices go with it: the next cluster of this process needs their names.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn forward(taps: &[OwnedFd], exempt: u16, mut shaper: Shaper<Port>, stopped: &AtomicBool) {
    let mut buffer = [0; FRAME_MAX];
    while !stopped.load(Ordering::Relaxed) {
        let mut polled: Vec<PollFd> = taps.iter().map(|tap| PollFd::new(tap, PollFlags::IN)).collect();
        poll(&mut polled, Some(&until(shaper.next_due()))).ok();
        for (from, tap) in taps.iter().enumerate() {
            for _ in 0..FRAMES_AT_ONCE {
                let Ok(length) = rustix::io::read(tap, &mut buffer) else {
                    break;
                };
                let bytes = &buffer[..length];
                let Some(to) = destination(bytes).filter(|to| *to < taps.len() && *to != from) else {
                    continue;
                };
                if (from == CLIENTS || to == CLIENTS) && is_tcp_of(bytes, exempt) {
                    send(&taps[to], bytes);
                    continue;
                }
                let frame = Frame {
                    way: to,
                    bytes: bytes.to_vec(),
                };
                let connection = datagram_of(bytes).and_then(connection_of);
                shaper.offer(from, to, frame, connection, Instant::now());
            }
        }
        while let Some(Frame { way, bytes }) = shaper.due(Instant::now()) {
            send(&taps[way], &bytes);
        }
    }
}

/// A full queue or a device that is gone: the frame is lost, as frames may be.
fn send(tap: &OwnedFd, bytes: &[u8]) {
    rustix::io::write(tap, bytes).ok();
}

fn destination(frame: &[u8]) -> Option<Port> {
    let port = usize::from(*frame.get(5)?);
    (frame[..5] == mac(port)[..5]).then_some(port)
}

fn is_tcp_of(frame: &[u8], port: u16) -> bool {
    const TCP: u8 = 6;
    let Some(segment) = in_ipv4(frame, TCP) else {
        return false;
    };
    let at = |offset: usize| segment.get(offset..offset + 2) == Some(&port.to_be_bytes()[..]);
    at(0) || at(2)
}

fn datagram_of(frame: &[u8]) -> Option<&[u8]> {
    const UDP: u8 = 17;
    in_ipv4(frame, UDP)?.get(8..)
}

/// What a frame carries by IPv4, of this protocol.
fn in_ipv4(frame: &[u8], protocol: u8) -> Option<&[u8]> {
    const IPV4: [u8; 2] = [0x08, 0x00];
    let is = frame.get(12..14)? == IPV4 && *frame.get(23)? == protocol;
    is.then_some(())?;
    frame.get(14 + usize::from(frame[14] & 0x0f) * 4..)
}

/// An Ethernet frame at an MTU of 1500, and room.
const FRAME_MAX: usize = 2_048;
/// So that one port that never is quiet does not starve the others.
const FRAMES_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_and_operator_ports_are_read_from_frames() {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&mac(3));
        frame[12] = 8;
        (frame[14], frame[23]) = (0x45, 6);
        frame[36..38].copy_from_slice(&18_083_u16.to_be_bytes());
        assert_eq!(destination(&frame), Some(3));
        assert!(is_tcp_of(&frame, 18_083) && !is_tcp_of(&frame, 1_883));
        frame[23] = 17;
        assert!(!is_tcp_of(&frame, 18_083));
        frame[42] = 0x41;
        frame[43] = 9;
        assert_eq!(datagram_of(&frame).and_then(connection_of), Some(9));
        frame[..6].copy_from_slice(&[0xff; 6]);
        assert_eq!(destination(&frame), None);
    }
}
