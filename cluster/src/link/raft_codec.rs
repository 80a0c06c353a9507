//! Bytes of openraft's requests and results between nodes. Sans-io; nothing here depends on openraft's own encodings.
//!
//! ```text
//! append item   := vote prev:log_id? commit:log_id? count:var (length:var entry)*
//! append result := 0 matching:log_id? | 1 conflict:log_id | 2 vote
//! unary request := group:var body          unary answer := 0 body | 1 failure:u8
//! ```
//!
//! Invariant `readable-forever`: the link's version (handshake) covers these; golden bytes pin them.

use bytes::Bytes;
use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::GroupId;
use lontra_storage::raft_types::{
    self, LogId, SnapshotMeta, TypeConfig, Vote, read_log_id, read_vote, write_log_id, write_vote,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::frame::Failure;

/// Kinds of unary requests to a group.
pub(super) const KIND_APPEND: u8 = 1;
pub(super) const KIND_VOTE: u8 = 2;
pub(super) const KIND_PRE_VOTE: u8 = 3;
pub(super) const KIND_TRANSFER: u8 = 4;

type Decoded<T> = Result<T, DecodeError>;

fn write_option(writer: &mut Writer, id: Option<&LogId>) {
    writer.option(id, write_log_id);
}

fn read_option(reader: &mut Reader<'_>) -> Decoded<Option<LogId>> {
    reader.option(read_log_id)
}

/// In parts, so that each entry is encoded once and its bytes go to the socket as they are.
pub(super) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(1 + 2 * request.entries.len());
    let mut head = Writer::with_capacity(96);
    write_vote(&mut head, &request.vote);
    write_option(&mut head, request.prev_log_id.as_ref());
    write_option(&mut head, request.leader_commit.as_ref());
    head.var(request.entries.len() as u64);
    for entry in &request.entries {
        let entry = raft_types::encode_entry(entry);
        head.var(entry.len() as u64);
        parts.push(std::mem::take(&mut head).finish());
        parts.push(entry);
    }
    if !head.is_empty() {
        parts.push(head.finish());
    }
    parts
}

pub(super) fn decode_append(bytes: &Bytes) -> Decoded<AppendEntriesRequest<TypeConfig>> {
    let mut reader = Reader::new("append request", bytes);
    let request = read_append(&mut reader)?;
    reader.end()?;
    Ok(request)
}

fn read_append(reader: &mut Reader<'_>) -> Decoded<AppendEntriesRequest<TypeConfig>> {
    let vote = read_vote(reader)?;
    let (prev_log_id, leader_commit) = (read_option(reader)?, read_option(reader)?);
    let count = reader.count()?;
    let mut entries = Vec::with_capacity(count.min(ENTRIES_AHEAD));
    for _ in 0..count {
        entries.push(raft_types::decode_entry(&reader.bytes()?)?);
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

pub(super) fn encode_append_result(result: &StreamAppendResult<TypeConfig>) -> Bytes {
    let mut writer = Writer::with_capacity(32);
    match result {
        Ok(matching) => write_option(writer.u8(0), matching.as_ref()),
        Err(StreamAppendError::Conflict(id)) => write_log_id(writer.u8(1), id),
        Err(StreamAppendError::HigherVote(vote)) => write_vote(writer.u8(2), vote),
    }
    writer.finish()
}

pub(super) fn decode_append_result(bytes: &Bytes) -> Decoded<StreamAppendResult<TypeConfig>> {
    let mut reader = Reader::new("append result", bytes);
    let result = match reader.u8()? {
        0 => Ok(read_option(&mut reader)?),
        1 => Err(StreamAppendError::Conflict(read_log_id(&mut reader)?)),
        2 => Err(StreamAppendError::HigherVote(read_vote(&mut reader)?)),
        _ => return Err(reader.error()),
    };
    reader.end()?;
    Ok(result)
}

/// A unary request; the group stands first.
pub(super) fn request(group: GroupId) -> Writer {
    let mut writer = Writer::with_capacity(64);
    writer.var(group.0.into());
    writer
}

pub(super) fn read_group(reader: &mut Reader<'_>) -> Decoded<GroupId> {
    Ok(GroupId(reader.var32()?))
}

pub(super) fn encode_heartbeat(group: GroupId, request_: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let mut writer = request(group);
    for part in encode_append(request_) {
        writer.raw(&part);
    }
    writer.finish()
}

pub(super) fn read_heartbeat(reader: &mut Reader<'_>) -> Decoded<AppendEntriesRequest<TypeConfig>> {
    let request = read_append(reader)?;
    reader.end()?;
    Ok(request)
}

pub(super) fn encode_vote_request(group: GroupId, vote: &VoteRequest<TypeConfig>) -> Bytes {
    let mut writer = request(group);
    write_vote(&mut writer, &vote.vote);
    write_option(&mut writer, vote.last_log_id.as_ref());
    writer.bool(vote.leadership_transfer);
    writer.finish()
}

pub(super) fn read_vote_request(reader: &mut Reader<'_>) -> Decoded<VoteRequest<TypeConfig>> {
    let mut request = VoteRequest::new(read_vote(reader)?, read_option(reader)?);
    request.leadership_transfer = reader.bool()?;
    reader.end()?;
    Ok(request)
}

pub(super) fn encode_transfer_request(group: GroupId, transfer: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut writer = request(group);
    write_vote(&mut writer, transfer.from_leader());
    writer.var(*transfer.to_node_id());
    write_option(&mut writer, transfer.last_log_id());
    writer.finish()
}

pub(super) fn read_transfer_request(reader: &mut Reader<'_>) -> Decoded<TransferLeaderRequest<TypeConfig>> {
    let (from, to, last) = (read_vote(reader)?, reader.var()?, read_option(reader)?);
    reader.end()?;
    Ok(TransferLeaderRequest::new(from, to, last))
}

/// A unary answer: what was asked for, or why there is none.
pub(super) fn encode_answer<T>(answer: Result<T, Failure>, write: impl FnOnce(&mut Writer, &T)) -> Bytes {
    let mut writer = Writer::with_capacity(64);
    match answer {
        Ok(value) => write(writer.u8(0), &value),
        Err(failure) => {
            writer.u8(1).u8(failure.number());
        }
    }
    writer.finish()
}

pub(super) fn decode_answer<T>(
    bytes: &Bytes,
    read: impl FnOnce(&mut Reader<'_>) -> Decoded<T>,
) -> Decoded<Result<T, Failure>> {
    let mut reader = Reader::new("answer of a group", bytes);
    let answer = match reader.u8()? {
        0 => Ok(read(&mut reader)?),
        1 => Err(Failure::read(&mut reader)?),
        _ => return Err(reader.error()),
    };
    reader.end()?;
    Ok(answer)
}

pub(super) fn write_append_response(writer: &mut Writer, response: &AppendEntriesResponse<TypeConfig>) {
    match response {
        AppendEntriesResponse::Success => {
            writer.u8(0);
        }
        AppendEntriesResponse::PartialSuccess(matching) => write_option(writer.u8(1), matching.as_ref()),
        AppendEntriesResponse::Conflict => {
            writer.u8(2);
        }
        AppendEntriesResponse::HigherVote(vote) => write_vote(writer.u8(3), vote),
    }
}

pub(super) fn read_append_response(reader: &mut Reader<'_>) -> Decoded<AppendEntriesResponse<TypeConfig>> {
    Ok(match reader.u8()? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(read_option(reader)?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(read_vote(reader)?),
        _ => return Err(reader.error()),
    })
}

pub(super) fn write_vote_response(writer: &mut Writer, response: &VoteResponse<TypeConfig>) {
    write_vote(writer, &response.vote);
    writer.bool(response.vote_granted);
    write_option(writer, response.last_log_id.as_ref());
}

pub(super) fn read_vote_response(reader: &mut Reader<'_>) -> Decoded<VoteResponse<TypeConfig>> {
    let (vote, granted) = (read_vote(reader)?, reader.bool()?);
    Ok(VoteResponse::new(vote, read_option(reader)?, granted))
}

pub(super) fn write_transfer_response(writer: &mut Writer, response: &TransferLeaderResponse<TypeConfig>) {
    match response {
        Ok(()) => {
            writer.u8(0);
        }
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            write_vote(writer.u8(1), expected);
            write_vote(writer, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            write_option(writer.u8(2), expected.as_ref());
            write_option(writer, actual.as_ref());
        }
    }
}

pub(super) fn read_transfer_response(reader: &mut Reader<'_>) -> Decoded<TransferLeaderResponse<TypeConfig>> {
    Ok(match reader.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged {
            expected: read_vote(reader)?,
            actual: read_vote(reader)?,
        }),
        2 => Err(TransferLeaderError::LogNotFlushed {
            expected: read_option(reader)?,
            actual: read_option(reader)?,
        }),
        _ => return Err(reader.error()),
    })
}

pub(super) fn encode_snapshot_head(vote: &Vote, meta: &SnapshotMeta) -> Bytes {
    let mut writer = Writer::with_capacity(128);
    write_vote(&mut writer, vote);
    writer.raw(&raft_types::encode_snapshot_meta(meta));
    writer.finish()
}

pub(super) fn decode_snapshot_head(bytes: &Bytes) -> Decoded<(Vote, SnapshotMeta)> {
    let mut reader = Reader::new("snapshot head", bytes);
    let vote = read_vote(&mut reader)?;
    Ok((vote, raft_types::decode_snapshot_meta(&reader.rest())?))
}

pub(super) fn write_snapshot_response(writer: &mut Writer, response: &SnapshotResponse<TypeConfig>) {
    write_vote(writer, &response.vote);
}

pub(super) fn read_snapshot_response(reader: &mut Reader<'_>) -> Decoded<SnapshotResponse<TypeConfig>> {
    Ok(SnapshotResponse::new(read_vote(reader)?))
}

/// Entries that are allocated for before they were read.
const ENTRIES_AHEAD: usize = 1024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lontra_storage::raft_types::{Command, Entry, EntryPayload, LeaderId, Membership, StoredMembership};
    use openraft::entry::RaftEntry;

    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 2, node_id: 1 }, index)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Golden bytes: a change here parts nodes of two releases (`readable-forever`).
    #[test]
    fn golden_append_requests_stay() {
        let entry = Entry::new(id(9), EntryPayload::Normal(Command(Bytes::from_static(b"abc"))));
        let mut request = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(2, 1),
            prev_log_id: Some(id(8)),
            entries: vec![entry.clone(), entry],
            leader_commit: None,
        };
        let bytes = Bytes::from(encode_append(&request).concat());
        assert_eq!(
            hex(&bytes),
            "020101 01020108 00 02 08 0102010901616263 08 0102010901616263".replace(' ', "")
        );
        assert_eq!(decode_append(&bytes).unwrap().to_string(), request.to_string());
        for length in 0..bytes.len() {
            assert!(decode_append(&bytes.slice(..length)).is_err());
        }

        request.entries.clear();
        request.leader_commit = Some(id(7));
        let bytes = encode_heartbeat(GroupId(3), &request);
        assert_eq!(hex(&bytes), "03 020101 01020108 01020107 00".replace(' ', ""));
        let mut reader = Reader::new("test", &bytes);
        assert_eq!(read_group(&mut reader), Ok(GroupId(3)));
        assert_eq!(read_heartbeat(&mut reader).unwrap().to_string(), request.to_string());
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        // xorshift: the same bytes in every run.
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..48)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // Small numbers get further into a decoder than large ones.
                    (state >> 32) as u8 & 0x83
                })
                .collect();
            let bytes = Bytes::from(bytes);
            let _ = decode_append(&bytes);
            let _ = decode_append_result(&bytes);
            let _ = decode_snapshot_head(&bytes);
            let _ = read_vote_request(&mut Reader::new("test", &bytes));
            let _ = read_transfer_request(&mut Reader::new("test", &bytes));
            let _ = decode_answer(&bytes, read_transfer_response);
        }
    }

    #[test]
    fn golden_append_results_stay() {
        let check = |result: StreamAppendResult<TypeConfig>, expected: &str| {
            let bytes = encode_append_result(&result);
            assert_eq!(hex(&bytes), expected);
            assert_eq!(decode_append_result(&bytes), Ok(result));
        };
        check(Ok(None), "0000");
        check(Ok(Some(id(9))), "0001020109");
        check(Err(StreamAppendError::Conflict(id(9))), "01020109");
        check(Err(StreamAppendError::HigherVote(Vote::new(3, 2))), "02030200");
    }

    #[test]
    fn golden_votes_transfers_and_snapshots_stay() {
        let mut vote = VoteRequest::new(Vote::new(3, 2), Some(id(9)));
        vote.leadership_transfer = true;
        let bytes = encode_vote_request(GroupId(1), &vote);
        assert_eq!(hex(&bytes), "01 030200 01020109 01".replace(' ', ""));
        let mut reader = Reader::new("test", &bytes);
        read_group(&mut reader).unwrap();
        assert_eq!(read_vote_request(&mut reader), Ok(vote));

        let transfer = TransferLeaderRequest::new(Vote::new_committed(3, 2), 4, None);
        let bytes = encode_transfer_request(GroupId(1), &transfer);
        assert_eq!(hex(&bytes), "01 030201 04 00".replace(' ', ""));
        let mut reader = Reader::new("test", &bytes);
        read_group(&mut reader).unwrap();
        assert_eq!(read_transfer_request(&mut reader), Ok(transfer));

        let membership = Membership::new_with_defaults(vec![BTreeSet::from([1, 2])], []);
        let meta = SnapshotMeta {
            last_log_id: Some(id(9)),
            last_membership: StoredMembership::new(Some(id(1)), membership),
        };
        let bytes = encode_snapshot_head(&Vote::new_committed(3, 2), &meta);
        assert_eq!(
            hex(&bytes),
            "030201 01 01020109 01020101 01020102 020102".replace(' ', "")
        );
        assert_eq!(decode_snapshot_head(&bytes), Ok((Vote::new_committed(3, 2), meta)));
    }

    #[test]
    fn golden_answers_stay() {
        fn check<T: Clone + PartialEq + std::fmt::Debug>(
            answer: Result<T, Failure>,
            write: fn(&mut Writer, &T),
            read: fn(&mut Reader<'_>) -> Decoded<T>,
            expected: &str,
        ) {
            let bytes = encode_answer(answer.clone(), write);
            assert_eq!(hex(&bytes), expected);
            assert_eq!(decode_answer(&bytes, read), Ok(answer));
        }
        let append = |answer, expected| check(answer, write_append_response, read_append_response, expected);
        append(Ok(AppendEntriesResponse::Success), "0000");
        append(Ok(AppendEntriesResponse::PartialSuccess(Some(id(9)))), "000101020109");
        append(Ok(AppendEntriesResponse::Conflict), "0002");
        append(Ok(AppendEntriesResponse::HigherVote(Vote::new(3, 2))), "0003030200");
        append(Err(Failure::UnknownGroup), "0101");
        let vote = VoteResponse::new(Vote::new(3, 2), Some(id(9)), true);
        check(Ok(vote), write_vote_response, read_vote_response, "000302000101020109");
        let transfer = |answer, expected| check(Ok(answer), write_transfer_response, read_transfer_response, expected);
        transfer(Ok(()), "0000");
        let (expected, actual) = (Vote::new(3, 2), Vote::new(4, 1));
        transfer(
            Err(TransferLeaderError::VoteChanged { expected, actual }),
            "0001030200040100",
        );
        transfer(
            Err(TransferLeaderError::LogNotFlushed {
                expected: Some(id(9)),
                actual: None,
            }),
            "00020102010900",
        );
        let snapshot = SnapshotResponse::new(Vote::new(3, 2));
        check(
            Ok(snapshot),
            write_snapshot_response,
            read_snapshot_response,
            "00030200",
        );
    }
}
