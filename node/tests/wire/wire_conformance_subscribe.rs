//! SUBSCRIBE, UNSUBSCRIBE and their answers, byte for byte: one node and three answer alike.

use crate::support::script::conforms;

/// [MQTT-3.8.1-1] [MQTT-3.8.3-1] to [MQTT-3.8.3-5] [MQTT-2.2.1-3] [v3 MQTT-3.8.3-3] [v3 MQTT-3.8.3-4]
#[tokio::test]
async fn a_subscribe_that_is_wrong_ends_the_connection() {
    conforms(
        r##"
        == 345 flags other than 0010
        a = @
        a > 80 {0001 [] "t" 00}
        a ! 81
        == 45 the DUP flag, which is 3.1's
        a = @
        a > 8a {0001 [] "t" 00}
        a ! 81
        == 345 Packet Identifier 0
        a = @
        a > 82 {0000 [] "t" 00}
        a ! 81
        == 345 no Topic Filter
        a = @
        a > 82 {0001 []}
        a ! 82
        == 345 a Topic Filter without options
        a = @
        a > 82 {0001 [] "t"}
        a ! 81
        == 345 QoS 3
        a = @
        a > 82 {0001 [] "t" 03}
        a ! 81
        == 34 options of 5.0
        a = @
        a > 82 {0001 "t" 04}
        a !
        == 5 reserved options
        a = @
        a > 82 {0001 [] "t" 40}
        a ! 81
        == 5 the other reserved option
        a = @
        a > 82 {0001 [] "t" 80}
        a ! 81
        == 5 Retain Handling 3
        a = @
        a > 82 {0001 [] "t" 30}
        a ! 82
        == 5 No Local on a Shared Subscription
        a = @
        a > 82 {0001 [] "$share/g/t" 04}
        a ! 82
        == 345 a Topic Filter that is not UTF-8
        a = @
        a > 82 {0001 [] 0001 ff 00}
        a ! 81
        == 345 a Topic Filter with U+0000
        a = @
        a > 82 {0001 [] 0002 6100 00}
        a ! 81
        == 345 an empty Topic Filter
        a = @
        a > 82 {0001 [] "" 00}
        a ! 8f
        "##,
    )
    .await;
}

/// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.8.2-1] [MQTT-4.8.2-2]
#[tokio::test]
async fn topic_filters_have_a_grammar() {
    conforms(
        r##"
        == 345 hash with something before it in its level
        a = @
        a > 82 {0001 [] "t#" 00}
        a ! 8f
        == 345 hash before the end
        a = @
        a > 82 {0001 [] "t/#/x" 00}
        a ! 8f
        == 345 + with something before it in its level
        a = @
        a > 82 {0001 [] "t+" 00}
        a ! 8f
        == 345 + with something behind it in its level
        a = @
        a > 82 {0001 [] "+t/x" 00}
        a ! 8f
        == 345 no Share Name
        a = @
        a > 82 {0001 [] "$share//t" 00}
        a ! 8f
        == 345 no filter behind the Share Name
        a = @
        a > 82 {0001 [] "$share/g" 00}
        a ! 8f
        == 345 an empty filter behind the Share Name
        a = @
        a > 82 {0001 [] "$share/g/" 00}
        a ! 8f
        == 345 a wildcard in the Share Name
        a = @
        a > 82 {0001 [] "$share/+/t" 00}
        a ! 8f
        == 345 the other wildcard in the Share Name
        a = @
        a > 82 {0001 [] "$share/g#/t" 00}
        a ! 8f
        == 345 the same goes for UNSUBSCRIBE
        a = @
        a > a2 {0001 [] "t#"}
        a ! 8f
        == 345 what looks odd and is right
        a = @
        a > 82 {0001 [] "+" 00 "#" 00 "/" 00 "+/+" 00 "//#" 00 "$share/g/+/#" 00 " " 00 "$x" 00}
        a < 90 {0001 [] 0000000000000000}
        "##,
    )
    .await;
}

/// [MQTT-2.2.1-6] [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-5] to [MQTT-3.8.4-8] [MQTT-3.9.3-1] [MQTT-3.9.3-2]
/// [MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT-3.10.4-4] to [MQTT-3.10.4-6] [MQTT-3.11.3-1] [MQTT-3.11.3-2]
#[tokio::test]
async fn each_filter_has_its_code_in_order() {
    conforms(
        r##"
        == 345 granted as asked
        a = @
        a > 82 {1234 [] "codes/a/%" 02 "codes/b/%" 00 "codes/c/%" 01}
        a < 90 {1234 [] 020001}
        == 345 many in one are as many one by one; the same filter twice ends as the last one says
        a = @
        a > 82 {0001 [] "last/%" 00 "last/%" 01}
        a < 90 {0001 [] 0001}
        b = @
        b > 32 {"last/%" 0001 [] 'x'}
        b < 40 {0001}
        a < 32 {"last/%" $one [] 'x'}
        a > 40 {$one}
        a -
        == 345 the lower QoS of both
        a = @
        a > 82 {0001 [] "lower/%" 01}
        a < 90 {0001 [] 01}
        b = @
        b > 34 {"lower/%" 0001 [] 'two'}
        b < 50 {0001}
        a < 32 {"lower/%" $one [] 'two'}
        a > 40 {$one}
        b > 30 {"lower/%" [] 'zero'}
        a < 30 {"lower/%" [] 'zero'}
        == 345 UNSUBSCRIBE: exactly this filter, in order, answered also if there was none
        a = @
        a > 82 {0001 [] "leave/%" 00 "leave/+" 00}
        a < 90 {0001 [] 0000}
        a > a2 {0102 [] "leave/#" "leave/%" "leave/%"}
        a < b0 {0102 [] (110011)}
        b = @
        b > 30 {"leave/%" [] 'x'}
        a < 30 {"leave/%" [] 'x'}
        a > a2 {0103 [] "leave/+"}
        a < b0 {0103 [] (00)}
        b > 32 {"leave/%" 0001 [] 'y'}
        b < 40 {0001 ..}
        a -
        == 345 UNSUBSCRIBE with wrong flags
        a = @
        a > a0 {0001 [] "t"}
        a ! 81
        == 345 UNSUBSCRIBE with identifier 0
        a = @
        a > a2 {0000 [] "t"}
        a ! 81
        == 345 UNSUBSCRIBE without a Topic Filter
        a = @
        a > a2 {0001 []}
        a ! 82
        == 345 UNSUBSCRIBE with a filter that is not UTF-8
        a = @
        a > a2 {0001 [] 0001 ff}
        a ! 81
        == 345 delivery that began before UNSUBSCRIBE is completed
        a = @
        a > 82 {0001 [] "begun/%" 02}
        a < 90 {0001 [] 02}
        b = @
        b > 34 {"begun/%" 0001 [] 'x'}
        b < 50 {0001}
        a < 34 {"begun/%" $two [] 'x'}
        a > a2 {0002 [] "begun/%"}
        a < b0 {0002 [] (00)}
        a > 50 {$two}
        a < 62 {$two}
        a > 70 {$two}
        a -
        "##,
    )
    .await;
}

/// [MQTT-3.3.2-3] [MQTT-4.7.2-1] [MQTT-4.7.3-4] [MQTT-3.3.4-2] to [MQTT-3.3.4-4] [MQTT-3.8.3-3] [MQTT-3.8.4-3] [MQTT-3.8.4-4]
#[tokio::test]
async fn what_matches_is_delivered_once() {
    conforms(
        r##"
        == 345 levels, wildcards, case, and nothing is normalised
        a = @
        a > 82 {0001 [] "m%/+/b" 00 "m%/#" 00 "/m%" 00 "m%/A" 00}
        a < 90 {0001 [] 00000000}
        b = @
        b > 30 {"m%/x/b" [] '1'}
        a < 30 {"m%/x/b" [] '1'}
        b > 30 {"m%" [] '2'}
        a < 30 {"m%" [] '2'}
        b > 30 {"M%/x/b" [] 'no'}
        b > 30 {"/m%/" [] 'no'}
        b > 30 {"/m%" [] '3'}
        a < 30 {"/m%" [] '3'}
        b > 30 {"m%//b" [] '4'}
        a < 30 {"m%//b" [] '4'}
        == 345 wildcards do not match what begins with $
        a = @
        a > 82 {0001 [] "#" 00 "+/d%" 00 "$d%/#" 01}
        a < 90 {0001 [] 000001}
        b = @
        b > 30 {"$e/d%" [] 'no'}
        b > 30 {"$d%/x" [] 'yes'}
        a < 30 {"$d%/x" [] 'yes'}
        == 5 overlapping subscriptions: once, the highest QoS, all identifiers
        a = @
        a > 82 {0001 [0b 07] "over/+" 00}
        a < 90 {0001 [] 00}
        a > 82 {0002 [0b 8801] "over/lap" 01}
        a < 90 {0002 [] 01}
        b = @
        b > 34 {"over/lap" 0001 [] 'x'}
        b < 50 {0001}
        a < 32 {"over/lap" $one [0b ..] 'x'}
        a > 40 {$one}
        a -
        == 5 No Local
        a = @
        a > 82 {0001 [] "own/%" 04}
        a < 90 {0001 [] 00}
        a > 32 {"own/%" 0001 [] 'mine'}
        a < 40 {0001 ..}
        a -
        b = @
        b > 30 {"own/%" [] 'yours'}
        a < 30 {"own/%" [] 'yours'}
        == 345 a subscription is replaced, and retained messages come again
        a = @
        a > 33 {"again/r/%" 0001 [] 'kept'}
        a < 40 {0001}
        b = @
        b > 82 {0001 [] "again/r/%" 00}
        b < 90 {0001 [] 00}
        b < 31 {"again/r/%" [] 'kept'}
        b > 82 {0002 [] "again/r/%" 01}
        b < 90 {0002 [] 01}
        b < 33 {"again/r/%" $one [] 'kept'}
        b > 40 {$one}
        a > 33 {"again/r/%" 0003 []}
        a < 40 {0003}
        b < 32 {"again/r/%" $two []}
        b > 40 {$two}
        b -
        == 345 shared subscriptions: one member gets it
        a = @
        a > 82 {0001 [] "$share/g%/shared/%" 00}
        a < 90 {0001 [] 00}
        b = @
        b > 32 {"shared/%" 0001 [] 'x'}
        b < 40 {0001}
        a < 30 {"shared/%" [] 'x'}
        a > a2 {0002 [] "$share/g%/shared/%"}
        a < b0 {0002 [] (00)}
        "##,
    )
    .await;
}
