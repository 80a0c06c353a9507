//! DISCONNECT, PINGREQ, AUTH, what only a server may send, and what ends a connection, byte for byte: one node and three
//! answer alike.

use crate::support::script::conforms;

/// [MQTT-3.14.1-1] [MQTT-3.14.2-1] [MQTT-3.14.2-2] [MQTT-3.14.4-2] [v3 MQTT-3.14.1-1]
#[tokio::test]
async fn disconnect_has_its_forms() {
    conforms(
        r##"
        == 345 the short one
        a = @
        a > e000
        a !
        == 345 wrong flags
        a = @
        a > e100
        a ! 81
        == 34 a body, in 3.x
        a = @
        a > e00100
        a !
        == 5 with a reason alone, with empty properties, with all properties
        a = @
        a > e00100
        a !
        b = @
        b > e0 {04 []}
        b !
        c = @
        c > e0 {00 [11 00000000 1f "why" 26 "k" "v" 26 "k" "w"]}
        c !
        == 5 every reason that a client may give
        a = @
        a > e00180
        a !
        b = @
        b > e00181
        b !
        c = @
        c > e00182
        c !
        d = @
        d > e00183
        d !
        e = @
        e > e00190
        e !
        f = @
        f > e00193
        f !
        g = @
        g > e00199
        g !
        == 5 a reason that only servers give
        a = @
        a > e0018b
        a ! 82
        == 5 a reason that is none
        a = @
        a > e00101
        a ! 81
        == 5 bytes behind the properties
        a = @
        a > e0 {00 [] 00}
        a ! 81
        == 5 an expiry that CONNECT did not have
        a = @
        a > e0 {00 [11 00000001]}
        a ! 82
        == 345 what comes behind DISCONNECT is not looked at
        a = @
        a > 82 {0001 [] "behind/%" 00}
        a < 90 {0001 [] 00}
        b = @
        b > e000 30 {"behind/%" [] 'x'}
        b !
        a -
        "##,
    )
    .await;
}

/// [MQTT-3.1.2-7] [MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.1.3-10] [MQTT-3.14.4-3]
/// [v3 MQTT-3.1.2-12]
#[tokio::test]
async fn wills_follow_every_end_but_the_clean_one() {
    conforms(
        r##"
        == 345 not after DISCONNECT, once after a lost connection
        a = @
        a > 82 {0001 [] "will/%" 01}
        a < 90 {0001 [] 01}
        b = raw
        b > 10 {@ 0e 003c [] "will-%" [] "will/%" "clean"}
        b < 20 {00 00 [..]}
        b > e000
        b !
        c = raw
        c > 10 {@ 0e 003c [] "will-%" [] "will/%" "lost"}
        c < 20 {00 00 [..]}
        c x
        a < 32 {"will/%" $one [] 'lost'}
        a > 40 {$one}
        a -
        == 345 after a protocol error
        a = @
        a > 82 {0001 [] "willed/%" 00}
        a < 90 {0001 [] 00}
        b = raw
        b > 10 {@ 06 003c [] "willed-%" [] "willed/%" "error"}
        b < 20 {00 00 [..]}
        b > 30 {"#" [] 'x'}
        b ! 90
        a < 30 {"willed/%" [] 'error'}
        == 5 after DISCONNECT 04, with its properties in their order
        a = @
        a > 82 {0001 [] "asked/%" 00}
        a < 90 {0001 [] 00}
        b = raw
        b > 10 {@ 06 003c [] "asked" [26 "b" "1" 26 "a" "2" 26 "b" "1" 03 "text"] "asked/%" "with"}
        b < 20 {00 00 [..]}
        b > e00104
        b !
        a < 30 {"asked/%" [03 "text" 26 "b" "1" 26 "a" "2" 26 "b" "1"] 'with'}
        == 345 retained if it says so
        a = @
        a > 82 {0001 [] "willkept/%" 00}
        a < 90 {0001 [] 00}
        b = raw
        b > 10 {@ 26 003c [] "willkept-%" [] "willkept/%" "kept"}
        b < 20 {00 00 [..]}
        b x
        a < 30 {"willkept/%" [] 'kept'}
        c = @
        c > 82 {0001 [] "willkept/%" 00}
        c < 90 {0001 [] 00}
        c < 31 {"willkept/%" [] 'kept'}
        d = @
        d > 33 {"willkept/%" 0001 []}
        d < 40 {0001}
        == 345 not retained if it does not
        a = @
        a > 82 {0001 [] "willgone/%" 00}
        a < 90 {0001 [] 00}
        b = raw
        b > 10 {@ 06 003c [] "willgone-%" [] "willgone/%" "gone"}
        b < 20 {00 00 [..]}
        b x
        a < 30 {"willgone/%" [] 'gone'}
        c = @
        c > 82 {0001 [] "willgone/%" 00}
        c < 90 {0001 [] 00}
        c -
        "##,
    )
    .await;
}

/// [MQTT-3.12.4-1] [MQTT-4.13.1-1] [MQTT-3.15.1-1] [MQTT-3.15.2-1] [MQTT-4.12.0-6] [MQTT-4.12.0-7] [MQTT-2.1.3-1]
/// [v3 MQTT-4.8.0-1]
#[tokio::test]
async fn other_packets() {
    conforms(
        r##"
        == 345 PINGREQ
        a = @
        a > c000
        a < d000
        a > c000c000
        a < d000
        a < d000
        == 345 PINGREQ with a body
        a = @
        a > c00100
        a ! 81
        == 345 PINGREQ with flags
        a = @
        a > c100
        a ! 81
        == 345 packet type 0
        a = @
        a > 0000
        a ! 81
        == 345 CONNACK from a client
        a = @
        a > 20 {00 00 []}
        a ! 82
        == 345 SUBACK from a client
        a = @
        a > 90 {0001 [] 00}
        a ! 82
        == 345 UNSUBACK from a client
        a = @
        a > b0 {0001 [] (00)}
        a ! 82
        == 345 PINGRESP from a client
        a = @
        a > d000
        a ! 82
        == 34 packet type 15 in 3.x
        a = @
        a > f000
        a !
        == 5 AUTH without a method in CONNECT
        a = @
        a > f000
        a ! 82
        == 5 AUTH that begins anew
        a = @
        a > f0 {19 [15 "SCRAM-SHA-1"]}
        a ! 82
        == 5 AUTH with a code that is none
        a = @
        a > f0 {01 [15 "SCRAM-SHA-1"]}
        a ! 81
        == 5 AUTH with flags
        a = @
        a > f100
        a ! 81
        == 5 AUTH without a method
        a = @
        a > f0 {18 []}
        a ! 82
        "##,
    )
    .await;
}

/// [MQTT-3.1.2-24] [MQTT-3.1.2-25] [MQTT-3.1.2-29] [MQTT-3.2.2-15] [MQTT-3.4.2-2] [MQTT-3.9.2-1] [MQTT-3.14.2-3]
#[tokio::test]
async fn answers_keep_to_what_the_client_takes() {
    conforms(
        r##"
        == 5 a message above the client's Maximum Packet Size is not sent, and those behind it are
        a = raw
        a > 10 {@ 02 003c [27 00000014] "small"}
        a < 20 {00 00 [..]}
        a > 82 {0001 [] "size/t" 01}
        a < 90 {0001 [] 01}
        b = @
        b > 32 {"size/t" 0001 [] 'nineteen'}
        b < 40 {0001}
        b > 32 {"size/t" 0002 [] 'fits'}
        b < 40 {0002}
        a < 32 {"size/t" $one [] 'fits'}
        a > 40 {$one}
        a -
        == 5 DISCONNECT without its reason string if only that is too large
        a = raw
        a > 10 {@ 02 003c [27 00000014] "short"}
        a < 20 {00 00 [..]}
        a > 30 {"#" [] 'x'}
        a < e00190
        a !
        == 5 no Reason String of an acknowledgement for who wants none: a filter too deep for the broker
        a = raw
        a > 10 {@ 02 003c [17 00] "no-problem"}
        a < 20 {00 00 [..]}
        a > 82 {0001 [] "////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////" 00 "t" 00}
        a < 90 {0001 [] 8f 00}
        == 5 a Reason String for who wants one
        a = raw
        a > 10 {@ 02 003c [17 01] "problem"}
        a < 20 {00 00 [..]}
        a > 82 {0001 [] "////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////" 00 "t" 00}
        a < 90 {0001 [1f ..] 8f 00}
        == 34 in 3.x it is 80
        a = @
        a > 82 {0001 "////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////" 00 "t" 00}
        a < 90 {0001 80 00}
        == 345 a packet above the broker's size limit, told from its first bytes
        a = @
        a > 30 ffffff7f
        a ! 95
        == 345 more than a packet other than PUBLISH may have
        a = @
        a > 82 ffff7f
        a ! 95
        == 34 a Keep Alive that ran out, in 3.x
        a = raw
        a > 10 {@ 02 0001 "silent-%"}
        a < 20020000
        a !
        == 5 a Keep Alive that ran out
        a = raw
        a > 10 {@ 02 0001 [] "silent-%"}
        a < 20 {00 00 [..]}
        a ! 8d
        "##,
    )
    .await;
}
