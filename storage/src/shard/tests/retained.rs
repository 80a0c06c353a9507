use super::*;
use crate::topic::matches;

fn expiring(topic: &str, payload: &str, seconds: u32) -> Message {
    Message {
        expiry_interval: Some(seconds),
        ..retain(topic, payload)
    }
}

/// Topics and payloads that a subscription to `filter` gets at `now`.
fn read(fixture: &Fixture, filter: &str, now: u64) -> Vec<(String, String)> {
    let page = read_retained(&fixture.tables, filter, None, LogTime(now), 1000, usize::MAX).unwrap();
    assert_eq!(page.next, None);
    let plain = page.messages.iter().map(|retained| {
        let payload = String::from_utf8(retained.message.payload.to_vec()).unwrap();
        (retained.message.topic.to_string(), payload)
    });
    plain.collect()
}

fn pair(topic: &str, payload: &str) -> (String, String) {
    (topic.to_owned(), payload.to_owned())
}

/// Size and index are what the rows say; how many rows and index rows there are.
#[track_caller]
fn check_rows(fixture: &Fixture) -> (usize, usize) {
    let all = read_retained(&fixture.tables, "#", None, LogTime(0), usize::MAX, usize::MAX).unwrap();
    let size = RetainedSize {
        count: all.messages.len() as u64,
        bytes: all.messages.iter().map(|retained| retained.message.size() as u64).sum(),
    };
    assert_eq!(read_retained_size(&fixture.tables).unwrap(), size);
    assert_eq!(fixture.effects().retained, size);
    let mut due: Vec<_> = all
        .messages
        .iter()
        .filter_map(|retained| {
            let at = retained.appended_at.plus_seconds(retained.message.expiry_interval?);
            Some(keys::retained_expiry(at, &retained.message.topic))
        })
        .collect();
    due.sort();
    let (start, end) = keys::kind_range(keys::RETAINED_EXPIRY);
    let index: Vec<_> = fixture.tables.scan(&start, &end, usize::MAX).unwrap();
    let index: Vec<_> = index.into_iter().map(|(key, _)| key.to_vec()).collect();
    assert_eq!(index, due);
    let next = due
        .first()
        .map(|key| LogTime(u64::from_be_bytes(key[1..9].try_into().unwrap())));
    assert_eq!(next_retained_expiry(&fixture.tables).unwrap(), next);
    (all.messages.len(), index.len())
}

#[test]
fn mqtt_3_3_1_5_the_retained_message_is_the_last() {
    let mut fixture = Fixture::new();
    fixture.operate(&[], vec![append(retain("a", "1")), append(retain("b", "1"))]);
    assert_eq!(read(&fixture, "#", 0), [pair("a", "1"), pair("b", "1")]);
    // Twice in one entry, and by two nodes; what is not retained changes nothing.
    let one = fixture.batch(1, ROUTE, &[], vec![append(retain("a", "2")), append(message("a"))]);
    let other = fixture.batch(2, ROUTE, &[], vec![append(retain("a", "333"))]);
    fixture.apply(&[one, other]);
    assert_eq!(read(&fixture, "#", 0), [pair("a", "333"), pair("b", "1")]);
    let page = read_retained(&fixture.tables, "a", None, LogTime(0), 10, usize::MAX).unwrap();
    assert_eq!(
        (page.messages[0].offset, page.messages[0].appended_at, page.upto),
        (Offset(5), LogTime(2000), Offset(5)),
        "retained-last"
    );
    assert_eq!(check_rows(&fixture), (2, 0));
}

#[test]
fn mqtt_3_3_1_6_an_empty_payload_removes_the_retained_message() {
    let mut fixture = Fixture::new();
    fixture.operate(
        &[recipient(10)],
        vec![append(expiring("a", "1", 9)), append(retain("b", "1"))],
    );
    assert_eq!(check_rows(&fixture), (2, 1));
    // It goes to subscribers like any other.
    fixture.operate(&[recipient(10)], vec![append(retain("a", "")), append(retain("c", ""))]);
    assert_eq!(fixture.queue(10), [1, 2, 3, 4]);
    assert_eq!(read(&fixture, "#", 0), [pair("b", "1")]);
    assert_eq!(check_rows(&fixture), (1, 0));
    // Gone and there again within one entry, and the other way round.
    fixture.operate(&[], vec![append(retain("b", "")), append(retain("b", "2"))]);
    assert_eq!(read(&fixture, "#", 0), [pair("b", "2")]);
    fixture.operate(
        &[],
        vec![
            append(expiring("d", "2", 1)),
            append(retain("d", "")),
            append(retain("b", "")),
        ],
    );
    assert_eq!(check_rows(&fixture), (0, 0));
    fixture.operate(&[], vec![acknowledge(10, &[1, 2, 3, 4])]);
    assert_eq!(fixture.kinds(), BTreeMap::new());
}

#[test]
fn retained_messages_expire() {
    let mut fixture = Fixture::new();
    let expire = |limit| vec![ShardOperation::ExpireRetained { limit }];
    // At 1000: due at 3000, 3000, 5000, never.
    fixture.operate(
        &[],
        vec![
            append(expiring("a", "1", 2)),
            append(expiring("b", "1", 2)),
            append(expiring("c", "1", 4)),
            append(retain("d", "1")),
        ],
    );
    assert_eq!(check_rows(&fixture), (4, 3));
    assert_eq!(next_retained_expiry(&fixture.tables).unwrap(), Some(LogTime(3000)));
    // Nobody gets one that is due, also while it is there.
    assert_eq!(read(&fixture, "#", 2999).len(), 4);
    assert_eq!(read(&fixture, "#", 3000), [pair("c", "1"), pair("d", "1")]);
    fixture.now = 2999;
    assert_eq!(fixture.operate(&[], expire(10)), NOTHING);
    assert_eq!(check_rows(&fixture), (4, 3));
    // A replacement has its own time; it is told apart from what expires in the same entry.
    fixture.now = 3000;
    let mut operations = vec![append(expiring("b", "2", 9))];
    operations.extend(expire(10));
    assert_eq!(fixture.operate(&[], operations), NOTHING);
    assert_eq!(read(&fixture, "#", 0), [pair("b", "2"), pair("c", "1"), pair("d", "1")]);
    assert_eq!(check_rows(&fixture), (3, 2));
    // Page by page; two in one entry do not tread on each other; 0 does not stand still.
    fixture.now = u64::MAX - 1;
    assert_eq!(fixture.operate(&[], expire(1)), MORE);
    fixture.now = u64::MAX;
    let both = [expire(0), expire(0)].concat();
    assert_eq!(fixture.operate(&[], both), MORE, "the second finds nothing");
    fixture.now = u64::MAX;
    assert_eq!(check_rows(&fixture), (1, 0));
}

#[test]
fn expiry_in_one_entry_goes_on_where_it_was() {
    let mut fixture = Fixture::new();
    let appends = (0..2500).map(|n| append(expiring(&n.to_string(), "1", 1)));
    fixture.operate(&[], appends.collect());
    let expire = ShardOperation::ExpireRetained { limit: u32::MAX };
    let more = |position| (position, OperationResult::More);
    fixture.now = 9000;
    let results = fixture.operate(&[], vec![expire.clone(), expire.clone()]);
    assert_eq!(results, [more(0), more(1)], "a page each, whatever was asked");
    assert_eq!(check_rows(&fixture), (500, 500));
    assert_eq!(fixture.operate(&[], vec![expire]), NOTHING);
    assert_eq!(check_rows(&fixture), (0, 0));
}

#[test]
fn a_filter_gets_what_it_matches() {
    let mut fixture = Fixture::new();
    let topics = ["$SYS/a", "/", "/a", "a", "a!", "a/", "a/b", "a/b/c", "aa", "é/b"];
    fixture.operate(&[], topics.map(|topic| append(retain(topic, "x"))).to_vec());
    let check = |filter: &str, expected: &[&str]| {
        let found: Vec<_> = read(&fixture, filter, 0).into_iter().map(|(topic, _)| topic).collect();
        assert_eq!(found, expected, "{filter}");
    };
    check("a/#", &["a", "a/", "a/b", "a/b/c"]);
    check("a", &["a"]);
    check("a/b", &["a/b"]);
    check("b", &[]);
    check("#", &topics[1..]);
    check("$SYS/#", &["$SYS/a"]);
    check("+/a", &["/a"]);
    check("+/b", &["a/b", "é/b"]);
    check("/#", &["/", "/a"]);
    check("a/+", &["a/", "a/b"]);
    check("a/+/#", &["a/", "a/b", "a/b/c"]);
    check("é/#", &["é/b"]);
}

#[test]
fn a_page_ends_at_its_limits_and_says_where_to_go_on() {
    let mut fixture = Fixture::new();
    let topics: Vec<_> = (0..9).map(|n| append(retain(&format!("t/{n}"), "x"))).collect();
    fixture.operate(&[], topics);
    let read = |after: Option<&str>, messages, bytes| {
        let page = read_retained(&fixture.tables, "t/+", after, LogTime(0), messages, bytes).unwrap();
        let copy = RetainedPage::decode(&page.encode()).unwrap();
        assert_eq!(format!("{copy:?}"), format!("{page:?}"));
        (page.messages.len(), page.next.map(String::from))
    };
    assert_eq!(read(None, 9, usize::MAX), (9, None));
    assert_eq!(read(None, 4, usize::MAX), (4, Some("t/3".to_owned())));
    assert_eq!(read(Some("t/3"), 5, usize::MAX), (5, None));
    assert_eq!(read(None, 9, 9), (3, Some("t/2".to_owned())), "4 bytes each");
    assert_eq!(read(Some("t/8"), 9, 9), (0, None));
    // At least one, or it would never end.
    assert_eq!(read(None, 0, 0), (1, Some("t/0".to_owned())));
    assert_eq!(read(Some("z"), 9, 9), (0, None));
}

#[test]
fn pages_of_many_topics_are_what_the_filter_matches() {
    let mut random = Random(17);
    let levels = ["a", "b", "c", "aa", "", "é", "$SYS", "0"];
    let mut topics = std::collections::BTreeSet::new();
    while topics.len() < 5000 {
        let mut topic: Vec<String> = (0..random.below(3))
            .map(|_| random.one_of(&levels).to_string())
            .collect();
        topic.push(format!("{}{}", random.one_of(&levels), random.below(900)));
        topics.insert(topic.join("/"));
    }
    let mut fixture = Fixture::new();
    for some in topics.iter().collect::<Vec<_>>().chunks(500) {
        let appends = some.iter().map(|topic| append(retain(topic, "x")));
        fixture.operate(&[], appends.collect());
    }
    for round in 0..200 {
        let mut filter: Vec<String> = (0..random.below(3))
            .map(|_| (*random.one_of(&["+", "a", "b", "", "$SYS", "é"])).to_owned())
            .collect();
        filter.push(match random.below(4) {
            0 => "+".to_owned(),
            1 => random.one_of(&levels).to_string() + &random.below(900).to_string(),
            _ => "#".to_owned(),
        });
        let filter = filter.join("/");
        let (messages, bytes) = (1 + random.below(3000) as usize, 1 + random.below(30_000) as usize);
        let (mut found, mut after) = (Vec::new(), None::<Box<str>>);
        loop {
            let (after_topic, now) = (after.as_deref(), LogTime(0));
            let page = read_retained(&fixture.tables, &filter, after_topic, now, messages, bytes).unwrap();
            assert!(page.messages.len() <= messages);
            found.extend(page.messages.iter().map(|retained| retained.message.topic.to_string()));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let expected: Vec<_> = topics.iter().filter(|topic| matches(&filter, topic)).cloned().collect();
        assert_eq!(
            found, expected,
            "round {round}: {filter}, pages of {messages} and {bytes} bytes"
        );
    }
}
