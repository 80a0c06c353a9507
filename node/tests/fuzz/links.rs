//! Bytes from peers: frames of the links.

use super::corpus;
use super::fuzzing::{Target, fuzz, outcome};
use bytes::Bytes;
use lontra_cluster::link::frame::{Batch, Frame, FrameBuffer};

/// A stream in pieces gives the frames of the whole; what is decoded is encoded to what decodes to the same. The first byte
/// cuts the stream; each frame is its length, which is put right, and its body.
#[test]
fn links() {
    let seeds = (0..=13u8)
        .map(|kind| vec![3, 6, kind, 1, 2, 3, 4, 5, 2, kind, 0])
        .collect();
    let target = Target {
        name: "links",
        corpus: &corpus("links"),
        seeds,
        words: &[&[0x80, 0x80, 1], &[0xff; 10], b"abc"],
        memory: (16 << 10, 64),
    };
    fuzz(target, |input| {
        let (cut, stream) = stream_of(input);
        let whole = frames(&stream, stream.len().max(1));
        assert_eq!(whole, frames(&stream, cut), "in pieces of {cut}");
        let mut batch = Batch::new();
        whole.0.iter().for_each(|frame| batch.push(frame));
        let again: Vec<u8> = batch.take().concat();
        assert_eq!(frames(&again, again.len().max(1)).0, whole.0, "said again");
        let kinds = whole.0.iter().map(std::mem::discriminant).collect::<Vec<_>>();
        outcome((kinds.iter().take(3).collect::<Vec<_>>(), whole.1))
    });
}

fn stream_of(input: &[u8]) -> (usize, Vec<u8>) {
    let Some((cut, mut rest)) = input.split_first() else {
        return (1, Vec::new());
    };
    let mut stream = Vec::new();
    while let Some((length, body)) = rest.split_first() {
        let (body, after) = body.split_at(body.len().min(usize::from(*length)));
        // 0xff: a length that is what the bytes say.
        if *length != 0xff {
            stream.extend((body.len() as u32).to_be_bytes());
        }
        stream.extend(body);
        rest = after;
    }
    (usize::from(*cut) % 9 + 1, stream)
}

/// The frames of a stream that comes in pieces, and what ended it.
fn frames(stream: &[u8], cut: usize) -> (Vec<Frame>, Option<String>) {
    let mut buffer = FrameBuffer::new();
    let mut found = Vec::new();
    for piece in stream.chunks(cut) {
        buffer.feed(piece);
        loop {
            match buffer.next_frame() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(error) => return (found, Some(error.to_string())),
            }
        }
    }
    let _ = Frame::decode(&Bytes::copy_from_slice(stream));
    (found, None)
}
