use super::*;

fn delay_of(origin: Origin, seconds: u32, count_max: Option<u64>, message: Message) -> ShardOperation {
    ShardOperation::Delay(Delay {
        message: message.encode(),
        seconds,
        count_max,
        origin,
    })
}

fn delay(seconds: u32, topic: &str) -> ShardOperation {
    delay_of(Origin::Plain, seconds, None, message(topic))
}

fn received(packet_id: u16) -> Origin {
    Origin::Received {
        session: SessionId(5),
        epoch: SessionEpoch(1),
        packet_id,
    }
}

fn waiting(fixture: &Fixture) -> Vec<Delayed> {
    let size = read_delayed_size(&fixture.tables).unwrap();
    let all = read_delayed(&fixture.tables, ALL, usize::MAX, usize::MAX).unwrap();
    let bytes: usize = all.iter().map(|one| one.message.size()).sum();
    assert_eq!((size.count, size.bytes), (all.len() as u64, bytes as u64));
    assert_eq!(
        fixture.kinds().get(&keys::DELAYED).copied().unwrap_or_default(),
        all.len()
    );
    all
}

const ALL: (LogTime, LogTime) = (LogTime(0), LogTime(u64::MAX));

fn topics(delayed: &[Delayed]) -> Vec<&str> {
    delayed.iter().map(|one| &*one.message.topic).collect()
}

fn release(one: &Delayed) -> ShardOperation {
    append_of(one.origin(), one.message.clone())
}

#[test]
fn a_message_waits_in_order_of_its_time() {
    let mut fixture = Fixture::new();
    // All in the entry of log time 1000, then one of 2000.
    let all = vec![delay(9, "c"), delay(3, "a"), delay(3, "b"), delay(0, "now")];
    assert_eq!(fixture.operate(&[recipient(10)], all), NOTHING);
    assert_eq!(fixture.operate(&[], vec![delay(5, "last of b")]), NOTHING);
    fixture.reload();
    let delayed = waiting(&fixture);
    assert_eq!(topics(&delayed), ["now", "a", "b", "last of b", "c"]);
    let due: Vec<u64> = delayed.iter().map(|one| one.due.0).collect();
    assert_eq!(due, [1000, 4000, 4000, 7000, 10_000]);
    // To the queues it does not exist yet, and it took no offset.
    assert!(fixture.queue(10).is_empty());
    assert_eq!(
        (fixture.effects().upto, fixture.effects().delayed.count),
        (Offset(0), 5)
    );
    let read = |from, until, limit, bytes| {
        let span = (LogTime(from), LogTime(until));
        read_delayed(&fixture.tables, span, limit, bytes).unwrap()
    };
    assert_eq!(read(4000, 9000, 2, usize::MAX), delayed[1..3]);
    assert_eq!(read(1001, 7000, 9, usize::MAX), delayed[1..4]);
    assert_eq!(read(0, 6999, 9, usize::MAX), delayed[..3]);
    assert_eq!(read(0, 9000, 9, 1), delayed[..1]);
}

#[test]
fn it_is_released_once_and_not_before_its_time() {
    for in_one_entry in [true, false] {
        let mut fixture = Fixture::new();
        fixture.operate(&[], vec![delay(2, "a")]);
        let one = waiting(&fixture).remove(0);
        // Log time 2000: a leader with a clock of its own.
        assert_eq!(fixture.operate(&[recipient(10)], vec![release(&one)]), REFUSED);
        assert_eq!(waiting(&fixture), std::slice::from_ref(&one));
        // Log time 3000: two leaders, with the matches of their time.
        let first = fixture.batch(1, 0, &[recipient(10), recipient(11)], vec![release(&one)]);
        let second = fixture.batch(2, 0, &[recipient(10), recipient(12)], vec![release(&one)]);
        let replies = match in_one_entry {
            true => fixture.apply(&[first, second]),
            false => {
                let mut replies = fixture.apply(&[first]);
                fixture.reload();
                replies.extend(fixture.apply(&[second]));
                replies
            }
        };
        assert!(matches!(&replies[0], BatchReply::Applied { results, .. } if results.is_empty()));
        assert!(matches!(&replies[1], BatchReply::Applied { results, .. } if results[..] == REFUSED));
        assert_eq!([10, 11, 12].map(|session| fixture.topics(session).len()), [1, 1, 0]);
        assert!(waiting(&fixture).is_empty());
        // Another one of the same time is another message.
        fixture.now = 2000;
        fixture.operate(&[], vec![delay(0, "a")]);
        assert_ne!(waiting(&fixture)[0].id, one.id);
        assert_eq!(fixture.operate(&[], vec![release(&one)]), REFUSED);
    }
}

#[test]
fn its_expiry_and_its_retain_count_from_the_release() {
    let mut fixture = Fixture::new();
    let mut kept = retain("a", "kept");
    kept.expiry_interval = Some(5);
    fixture.operate(&[], vec![delay_of(Origin::Plain, 60, None, kept.clone())]);
    let next_expiry = |fixture: &Fixture| next_retained_expiry(&fixture.tables).unwrap();
    assert_eq!(next_expiry(&fixture), None);
    let one = waiting(&fixture).remove(0);
    assert_eq!(one.message, kept);
    fixture.now = 61_000;
    fixture.operate(&[recipient(10)], vec![release(&one)]);
    assert_eq!(fixture.entries(10)[0].appended_at, LogTime(61_000));
    assert_eq!(next_expiry(&fixture), Some(LogTime(66_000)));
}

#[test]
fn a_qos_2_publish_is_delayed_once_until_pubrel() {
    let mut fixture = Fixture::new();
    let publish = || delay_of(received(7), 60, None, Message { qos: 2, ..message("a") });
    let pubrel = ShardOperation::ReleaseReceived {
        session: SessionId(5),
        epoch: SessionEpoch(1),
        packet_id: 7,
    };
    fixture.operate(&[], vec![publish(), publish()]);
    fixture.operate(&[], vec![publish()]);
    assert_eq!(waiting(&fixture).len(), 1);
    fixture.operate(&[], vec![pubrel, publish()]);
    assert_eq!(waiting(&fixture).len(), 2);
}

#[test]
fn no_more_wait_than_may() {
    let mut fixture = Fixture::new();
    let full = |position| (position, OperationResult::Full);
    let publish = |packet_id, max| delay_of(received(packet_id), 1, Some(max), message("a"));
    let all = vec![
        publish(1, 2),
        publish(2, 2),
        publish(3, 2),
        publish(1, 2),
        delay(1, "b"),
    ];
    assert_eq!(fixture.operate(&[], all), [full(2)]);
    assert_eq!(waiting(&fixture).len(), 3);
    assert_eq!(fixture.operate(&[], vec![publish(3, 3)]), [full(0)]);
    let one = waiting(&fixture).remove(0);
    assert_eq!(fixture.operate(&[], vec![release(&one), publish(3, 3)]), NOTHING);
    assert_eq!(waiting(&fixture).len(), 3);
}

/// What a session leaves behind is swept; what it published late is not its own.
#[test]
fn it_outlives_its_publisher() {
    let mut fixture = Fixture::new();
    fixture.operate(&[], vec![delay(1, "a")]);
    fixture.operate(&[], vec![sweep(1)]);
    assert_eq!(waiting(&fixture).len(), 1);
}

#[test]
fn the_rows_of_delayed_messages_are_pinned() {
    let mut fixture = Fixture::new();
    let head = |fixture: &Fixture| fixture.tables.get(&[keys::SHARD_HEAD]).unwrap().unwrap();
    fixture.operate(&[], vec![append(message("a"))]);
    // As it was before there were any: it is read, and still written so.
    let before = head(&fixture);
    let plain = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x03\xe8\0\0\0\0\0\x08\0\0\0\0\0\0\0\0";
    assert_eq!(before[..], plain[..], "golden: readable-forever");
    fixture.operate(&[], vec![delay(1, "a")]);
    assert_eq!(
        head(&fixture)[before.len()..],
        *b"\x01\x01\x02",
        "golden: readable-forever"
    );
    let (start, end) = keys::kind_range(keys::DELAYED);
    let (key, row) = fixture.tables.scan(&start, &end, 1).unwrap().remove(0);
    assert_eq!(
        key[..],
        *b"\x0d\0\0\0\0\0\0\x0b\xb8\0\0\0\0\0\0\0\x01",
        "golden: readable-forever"
    );
    assert_eq!(row, message("a").encode());
}

#[test]
fn a_tick_moves_log_time_alone() {
    let mut fixture = Fixture::new();
    fixture.now = 5000;
    assert_eq!(fixture.operate(&[], vec![ShardOperation::Tick]), NOTHING);
    assert_eq!(read_head(&fixture.tables).unwrap(), (Offset(0), LogTime(5000)));
}
