//! PUBLISH and its acknowledgements, byte for byte: one node and three answer alike.

use crate::support::script::conforms;

/// [MQTT-2.2.1-2] [MQTT-2.2.1-3] [MQTT-3.3.1-2] [MQTT-3.3.1-4] [MQTT-3.3.2-1] [MQTT-3.3.2-2] [MQTT-4.7.0-1] [MQTT-4.7.3-1]
/// [MQTT-4.7.3-2] [MQTT-1.5.4-1] [MQTT-1.5.5-1]
#[tokio::test]
async fn a_publish_that_is_wrong_ends_the_connection() {
    conforms(
        r##"
        == 345 QoS 3
        a = @
        a > 36 {"t" 0001 [] 'x'}
        a ! 81
        == 345 DUP with QoS 0
        a = @
        a > 38 {"t" [] 'x'}
        a ! 81
        == 345 Packet Identifier 0 at QoS 1
        a = @
        a > 32 {"t" 0000 [] 'x'}
        a ! 81
        == 345 Packet Identifier 0 at QoS 2
        a = @
        a > 34 {"t" 0000 [] 'x'}
        a ! 81
        == 345 no Packet Identifier
        a = @
        a > 32 {"t"}
        a ! 81
        == 345 a wildcard in a Topic Name: +
        a = @
        a > 30 {"t/+" [] 'x'}
        a ! 90
        == 345 a wildcard in a Topic Name: #
        a = @
        a > 30 {"t/#" [] 'x'}
        a ! 90
        == 345 a wildcard in a Topic Name at QoS 1
        a = @
        a > 32 {"#" 0001 [] 'x'}
        a ! 90
        == 34 an empty Topic Name
        a = @
        a > 30 {"" 'x'}
        a !
        == 5 an empty Topic Name without an alias
        a = @
        a > 30 {"" [] 'x'}
        a ! 82
        == 345 a Topic Name that is not UTF-8
        a = @
        a > 30 {0001 ff [] 'x'}
        a ! 81
        == 345 a Topic Name with a surrogate
        a = @
        a > 30 {0003 eda080 [] 'x'}
        a ! 81
        == 345 a Topic Name with U+0000
        a = @
        a > 30 {0003 610062 [] 'x'}
        a ! 81
        == 345 a Topic Name longer than its packet
        a = @
        a > 30 {0009 6162}
        a ! 81
        == 345 a Remaining Length of five bytes
        a = @
        a > 30 ffffffff01
        a ! 81
        == 5 a Remaining Length that is longer than needed
        a = @
        a > 30 8500 "t" 00 'x'
        a ! 81
        == 5 a Property Length that is longer than needed
        a = @
        a > 30 {"t" 8000 'x'}
        a ! 81
        == 5 a Property Length beyond the packet
        a = @
        a > 30 {"t" 7f 'x'}
        a ! 81
        "##,
    )
    .await;
}

/// [MQTT-3.3.4-1] [MQTT-4.3.2-4] [MQTT-4.3.2-5] [MQTT-4.3.3-8] [MQTT-4.3.3-10] [MQTT-4.3.3-11] [MQTT-4.3.3-12]
/// [MQTT-2.2.1-5] [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.7.2-1] [v3 MQTT-4.3.2-2] [v3 MQTT-4.3.3-2]
#[tokio::test]
async fn each_qos_has_its_answers() {
    conforms(
        r##"
        == 345 QoS 0 has none
        a = @
        a > 30 {"answers/%" [] 'x'}
        a -
        == 345 PUBACK has the identifier of its PUBLISH; nobody subscribed
        a = @
        a > 32 {"answers/%" 1234 [] 'x'}
        a < 40 {1234 (10)}
        a > 3a {"answers/%" 1234 [] 'again'}
        a < 40 {1234 (10)}
        == 345 PUBACK with somebody subscribed, and a new message under the same identifier, whatever DUP says
        a = @
        b = @
        a > 82 {0001 [] "answered/%" 00}
        a < 90 {0001 [] 00}
        b > 32 {"answered/%" 1234 [] 'x'}
        b < 40 {1234}
        a < 30 {"answered/%" [] 'x'}
        b > 3a {"answered/%" 1234 [] 'y'}
        b < 40 {1234}
        a < 30 {"answered/%" [] 'y'}
        == 345 QoS 2: a repeat before PUBREL is no second message, one after PUBCOMP is
        a = @
        b = @
        a > 82 {0001 [] "twice/%" 00}
        a < 90 {0001 [] 00}
        b > 34 {"twice/%" 0007 [] 'x'}
        b < 50 {0007}
        b > 3c {"twice/%" 0007 [] 'x'}
        b < 50 {0007}
        a < 30 {"twice/%" [] 'x'}
        b > 62 {0007}
        b < 70 {0007}
        b > 34 {"twice/%" 0007 [] 'y'}
        b < 50 {0007}
        a < 30 {"twice/%" [] 'y'}
        b > 62 {0007}
        b < 70 {0007}
        == 345 PUBREL of nothing: as if its PUBCOMP had been lost
        a = @
        a > 62 {0009}
        a < 70 {0009}
        == 34 PUBREC of nothing in 3.x
        a = @
        a > 50 {0009}
        a < 62 {0009}
        a > 70 {0009}
        a -
        == 5 PUBREC of nothing is 92
        a = @
        a > 50 {0009}
        a < 62 {0009 92}
        a > 70 {0009 92}
        a -
        == 345 PUBACK and PUBCOMP of nothing change nothing
        a = @
        a > 40 {0009}
        a > 70 {0009}
        a -
        == 5 acknowledgements in their long form, with everything that may be in them
        a = @
        a > 40 {0009 10}
        a > 40 {0009 00 []}
        a > 40 {0009 80 [1f "why" 26 "k" "v" 26 "k" "w"]}
        a > 50 {0009 80 [1f "why" 26 "k" "v"]}
        a > 70 {0009 92 [1f "why" 26 "k" "v"]}
        a -
        == 45 an acknowledgement that is cut short, has bytes too many, identifier 0, wrong flags
        a = @
        a > 40 {00}
        a ! 81
        b = @
        b > 50 {0000}
        b ! 81
        c = @
        c > 60 {0001}
        c ! 81
        d = @
        d > 41 {0001}
        d ! 81
        e = @
        e > 72 {0001}
        e ! 81
        f = @
        f > 62 {0000}
        f ! 81
        g = @
        g > 40 {0001 ff}
        g ! 81
        == 5 reason codes that are of other packets
        a = @
        a > 40 {0001 92}
        a ! 81
        b = @
        b > 50 {0001 01}
        b ! 81
        c = @
        c > 62 {0001 80}
        c ! 81
        d = @
        d > 70 {0001 10}
        d ! 81
        "##,
    )
    .await;
}

/// [MQTT-2.2.1-4] [MQTT-3.3.1-1] [MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.2-3] [MQTT-4.3.3-2] to [MQTT-4.3.3-6]
/// [MQTT-4.4.0-1] [MQTT-4.4.0-2] [MQTT-3.6.2-1] [MQTT-4.3.3-9] [v3 MQTT-4.3.3-1]
#[tokio::test]
async fn what_a_subscriber_is_sent() {
    conforms(
        r##"
        == 345 each QoS with DUP 0, and an exchange that is finished stays so
        a = @
        b = @
        a > 82 {0001 [] "sent/%" 02}
        a < 90 {0001 [] 02}
        b > 30 {"sent/%" [] 'q0'}
        a < 30 {"sent/%" [] 'q0'}
        b > 32 {"sent/%" 0001 [] 'q1'}
        b < 40 {0001}
        a < 32 {"sent/%" $one [] 'q1'}
        a > 40 {$one}
        b > 34 {"sent/%" 0001 [] 'q2'}
        b < 50 {0001}
        b > 62 {0001}
        b < 70 {0001}
        a < 34 {"sent/%" $two [] 'q2'}
        a > 50 {$two}
        a < 62 {$two}
        a > 70 {$two}
        a -
        == 5 what was not acknowledged comes again with DUP and its identifier
        a = raw
        a > 10 {@ 00 003c [11 00000e10] "again-%"}
        a < 20 {00 00 [..]}
        a > 82 {0001 [] "again/%" 02}
        a < 90 {0001 [] 02}
        b = @
        b > 32 {"again/%" 0001 [] 'one'}
        b < 40 {0001}
        a < 32 {"again/%" $one [] 'one'}
        b > 34 {"again/%" 0001 [] 'two'}
        b < 50 {0001}
        a < 34 {"again/%" $two [] 'two'}
        a x
        c = raw
        c > 10 {@ 00 003c [11 00000e10] "again-%"}
        c < 20 {01 00 [..]}
        c < 3a {"again/%" $one [] 'one'}
        c < 3c {"again/%" $two [] 'two'}
        c > 40 {$one}
        c > 50 {$two}
        c < 62 {$two}
        c x
        d = raw
        d > 10 {@ 00 003c [11 00000000] "again-%"}
        d < 20 {01 00 [..]}
        d < 62 {$two}
        d > 70 {$two}
        d -
        == 4 the same in 3.1.1
        a = raw
        a > 10 {@ 00 003c "again-%"}
        a < 20020000
        a > 82 {0001 "again/%" 02}
        a < 90 {0001 02}
        b = @
        b > 34 {"again/%" 0001 'two'}
        b < 50 {0001}
        a < 34 {"again/%" $two 'two'}
        a > 50 {$two}
        a < 62 {$two}
        a x
        c = raw
        c > 10 {@ 00 003c "again-%"}
        c < 20020100
        c < 62 {$two}
        c > 70 {$two}
        c -
        c > e000
        c !
        d = raw
        d > 10 {@ 02 003c "again-%"}
        d < 20020000
        == 5 an acknowledgement with an error is one: nothing comes again
        a = raw
        a > 10 {@ 00 003c [11 00000e10] "error-%"}
        a < 20 {00 00 [..]}
        a > 82 {0001 [] "error/%" 02}
        a < 90 {0001 [] 02}
        b = @
        b > 32 {"error/%" 0001 [] 'one'}
        b < 40 {0001}
        a < 32 {"error/%" $one [] 'one'}
        a > 40 {$one 83}
        b > 34 {"error/%" 0001 [] 'two'}
        b < 50 {0001}
        a < 34 {"error/%" $two [] 'two'}
        a > 50 {$two 97}
        a -
        a > e000
        a !
        c = raw
        c > 10 {@ 00 003c [11 00000000] "error-%"}
        c < 20 {01 00 [..]}
        c -
        == 5 a subscriber's Receive Maximum holds back QoS 1, nothing else
        a = raw
        a > 10 {@ 02 003c [21 0001] "quota-%"}
        a < 20 {00 00 [..]}
        a > 82 {0001 [] "quota/%" 01}
        a < 90 {0001 [] 01}
        b = @
        b > 32 {"quota/%" 0001 [] 'one'}
        b < 40 {0001}
        b > 32 {"quota/%" 0002 [] 'two'}
        b < 40 {0002}
        a < 32 {"quota/%" $one [] 'one'}
        a -
        b > 30 {"quota/%" [] 'zero'}
        a < 30 {"quota/%" [] 'zero'}
        a > 40 {$one}
        a < 32 {"quota/%" $two [] 'two'}
        a > 40 {$two}
        a -
        "##,
    )
    .await;
}

/// [MQTT-3.3.1-5] to [MQTT-3.3.1-13] [v3 MQTT-3.3.1-6] to [v3 MQTT-3.3.1-12]
#[tokio::test]
async fn retained_messages() {
    conforms(
        r##"
        == 345 the last one is kept, an empty one removes it, RETAIN 0 leaves it
        a = @
        a > 33 {"kept/%" 0001 [] 'old'}
        a < 40 {0001 ..}
        a > 33 {"kept/%" 0001 [] 'new'}
        a < 40 {0001 ..}
        a > 32 {"kept/%" 0001 [] 'live'}
        a < 40 {0001 ..}
        b = @
        b > 82 {0001 [] "kept/%" 01}
        b < 90 {0001 [] 01}
        b < 33 {"kept/%" $one [] 'new'}
        b > 40 {$one}
        a > 33 {"kept/%" 0002 [] 'newer'}
        a < 40 {0002}
        b < 32 {"kept/%" $two [] 'newer'}
        b > 40 {$two}
        a > 33 {"kept/%" 0003 []}
        a < 40 {0003}
        b < 32 {"kept/%" $three []}
        b > 40 {$three}
        c = @
        c > 82 {0001 [] "kept/%" 01}
        c < 90 {0001 [] 01}
        c -
        == 5 Retain Handling and Retain As Published
        a = @
        a > 33 {"handling/%" 0001 [] 'kept'}
        a < 40 {0001 ..}
        b = @
        b > 82 {0001 [] "handling/%" 20}
        b < 90 {0001 [] 00}
        b -
        b > 82 {0002 [] "handling/%" 10}
        b < 90 {0002 [] 00}
        b -
        b > 82 {0003 [] "handling/%" 00}
        b < 90 {0003 [] 00}
        b < 31 {"handling/%" [] 'kept'}
        c = @
        c > 82 {0001 [] "handling/%" 18}
        c < 90 {0001 [] 00}
        c < 31 {"handling/%" [] 'kept'}
        a > 33 {"handling/%" 0002 [] 'live'}
        a < 40 {0002}
        b < 30 {"handling/%" [] 'live'}
        c < 31 {"handling/%" [] 'live'}
        a > 32 {"handling/%" 0002 [] 'plain'}
        a < 40 {0002}
        c < 30 {"handling/%" [] 'plain'}
        a > 33 {"handling/%" 0003 []}
        a < 40 {0003}
        "##,
    )
    .await;
}

/// [MQTT-3.3.2-7] to [MQTT-3.3.2-12] [MQTT-3.1.2-26] [MQTT-3.1.2-27] [MQTT-3.2.2-17] [MQTT-3.2.2-18]
#[tokio::test]
async fn topic_aliases() {
    conforms(
        r##"
        == 5 one is set, used, set anew, and means nothing on the next connection
        a = @
        a > 82 {0001 [] "alias/#" 00}
        a < 90 {0001 [] 00}
        b = @
        b > 30 {"alias/one" [23 0001] 'x'}
        a < 30 {"alias/one" [] 'x'}
        b > 30 {"" [23 0001] 'y'}
        a < 30 {"alias/one" [] 'y'}
        b > 30 {"alias/two" [23 0001] 'z'}
        a < 30 {"alias/two" [] 'z'}
        b > 30 {"" [23 0001] 'z'}
        a < 30 {"alias/two" [] 'z'}
        c = @
        c > 30 {"" [23 0001] 'x'}
        c ! 82
        == 5 alias 0
        a = @
        a > 30 {"t" [23 0000] 'x'}
        a ! 94
        == 5 an alias above the maximum
        a = @
        a > 30 {"t" [23 ffff] 'x'}
        a ! 94
        == 5 an alias that was not set
        a = @
        a > 30 {"" [23 0002] 'x'}
        a ! 82
        == 5 the broker sets aliases only as far as the client takes them
        a = raw
        a > 10 {@ 02 003c [22 0001] "takes-aliases"}
        a < 20 {00 00 [..]}
        a > 82 {0001 [] "aliased/#" 00}
        a < 90 {0001 [] 00}
        b = @
        b > 30 {"aliased/one" [] 'x'}
        a < 30 {"aliased/one" [23 0001] 'x'}
        b > 30 {"aliased/one" [] 'y'}
        a < 30 {"" [23 0001] 'y'}
        b > 30 {"aliased/two" [] 'z'}
        a < 30 {"aliased/two" [23 0001] 'z'}
        "##,
    )
    .await;
}

/// [MQTT-3.3.2-4] [MQTT-3.3.2-6] [MQTT-3.3.2-15] to [MQTT-3.3.2-18] [MQTT-3.3.2-20]
#[tokio::test]
async fn properties_of_a_publish_travel() {
    conforms(
        r##"
        == 5 all of them, in their order; the rest of the expiry in front
        a = @
        a > 82 {0001 [] "travel/%" 01}
        a < 90 {0001 [] 01}
        b = @
        b > 32 {"travel/%" 0001 [01 01 02 0000ffff 26 "b" "1" 03 "text/plain" 26 "a" "2" 08 "reply/to" 09 0002 00ff 26 "b" "1"] 'x'}
        b < 40 {0001}
        a < 32 {"travel/%" $one [02 0000 ?? 01 01 26 "b" "1" 03 "text/plain" 26 "a" "2" 08 "reply/to" 09 0002 00ff 26 "b" "1"] 'x'}
        == 5 to a subscriber of 3.1.1 and back the message goes without them
        a = raw
        a > 10 {"MQTT" 04 02 003c "old-subscriber"}
        a < 20020000
        a > 82 {0001 "mixed/versions" 00}
        a < 90 {0001 00}
        b = @
        b > 30 {"mixed/versions" [26 "k" "v"] 'x'}
        a < 30 {"mixed/versions" 'x'}
        "##,
    )
    .await;
}
