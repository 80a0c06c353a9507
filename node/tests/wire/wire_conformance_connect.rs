//! CONNECT and CONNACK, byte for byte: one node and three answer alike. The statements are in
//! `node/tests/conformance/statements.tsv`.

use crate::support::script::conforms;

/// [MQTT-3.1.0-1] [MQTT-3.1.0-2] [MQTT-2.1.3-1]
#[tokio::test]
async fn connect_comes_first_and_once() {
    conforms(
        r##"
        == 45 a packet before CONNECT is closed without a word
        a = raw
        a > c000
        a !
        == 45 PUBLISH before CONNECT
        a = raw
        a > 30 {"first/%" [] 'x'}
        a !
        == 5 DISCONNECT before CONNECT
        a = raw
        a > e000
        a !
        == 5 AUTH before CONNECT
        a = raw
        a > f000
        a !
        == 345 a second CONNECT
        a = @
        a > 10 {@ 02 003c [] "again"}
        a ! 82
        == 45 what comes with CONNECT is looked at only after it was accepted
        a = raw
        a > 10 {@ 02 003c [] "together-%"} c000
        a < 20 {00 00 [..]}
        a < d000
        == 45 nothing behind a refused CONNECT is carried out
        a = @
        a > 82 {0001 [] "refused/%" 01}
        a < 90 {0001 [] 01}
        b = raw
        b > 10 {@ 1a 003c [] "refused"} 30 {"refused/%" [] 'x'}
        b x
        a -
        "##,
    )
    .await;
}

/// [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT-3.1.4-1]
#[tokio::test]
async fn protocol_names_and_levels() {
    conforms(
        r##"
        == 4 a name that is not MQTT
        a = raw
        a > 10 {"MQXX" 04 02 003c "c"}
        a !
        == 4 a name in small letters
        a = raw
        a > 10 {"mqtt" 04 02 003c "c"}
        a !
        == 5 level 6 is answered in the newest form
        a = raw
        a > 10 {"MQTT" 06 02 003c 00 "c"}
        a < 20 {00 84 [..]}
        a !
        == 4 levels 0 to 3 of MQTT and the bridges' bit are answered in the oldest form
        a = raw
        a > 10 {"MQTT" 03 02 003c "c"}
        a < 20020001
        a !
        b = raw
        b > 10 {"MQTT" 00 02 003c "c"}
        b < 20020001
        b !
        c = raw
        c > 10 {"MQTT" 84 02 003c "c"}
        c < 20020001
        c !
        "##,
    )
    .await;
}

/// [MQTT-3.1.2-3] [MQTT-3.1.2-9] [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13] [MQTT-3.1.2-16] to [MQTT-3.1.2-19]
/// [MQTT-3.1.3-1] [MQTT-3.1.3-3] [v3 MQTT-3.1.2-22]
#[tokio::test]
async fn flags_promise_what_follows() {
    conforms(
        r##"
        == 4 flags, lengths and order: closed without CONNACK
        a = raw
        a > 10 {@ 03 003c "c"}
        a !
        b = raw
        b > 10 {@ 0a 003c "c"}
        b !
        c = raw
        c > 10 {@ 22 003c "c"}
        c !
        d = raw
        d > 10 {@ 1e 003c "c" "w" "m"}
        d !
        e = raw
        e > 10 {@ 06 003c "c"}
        e !
        f = raw
        f > 10 {@ 06 003c "c" "w"}
        f !
        g = raw
        g > 10 {@ 02 003c "c" "user"}
        g !
        h = raw
        h > 10 {@ 82 003c "c"}
        h !
        i = raw
        i > 10 {@ c2 003c "c" "user"}
        i !
        j = raw
        j > 10 {@ 42 003c "c" "password"}
        j !
        k = raw
        k > 10 {@ 02 003c}
        k !
        l = raw
        l > 11 {@ 02 003c "c"}
        l !
        == 5 the same, told in CONNACK
        a = raw
        a > 10 {@ 03 003c [] "c"}
        a < 20 {00 81 [..]}
        a !
        b = raw
        b > 10 {@ 0a 003c [] "c"}
        b < 20 {00 81 [..]}
        b !
        c = raw
        c > 10 {@ 22 003c [] "c"}
        c < 20 {00 81 [..]}
        c !
        d = raw
        d > 10 {@ 1e 003c [] "c" [] "w" "m"}
        d < 20 {00 81 [..]}
        d !
        e = raw
        e > 10 {@ 06 003c [] "c"}
        e < 20 {00 81 [..]}
        e !
        f = raw
        f > 10 {@ 06 003c [] "c" [] "w"}
        f < 20 {00 81 [..]}
        f !
        g = raw
        g > 10 {@ 02 003c [] "c" "user"}
        g < 20 {00 81 [..]}
        g !
        h = raw
        h > 10 {@ 82 003c [] "c"}
        h < 20 {00 81 [..]}
        h !
        i = raw
        i > 10 {@ c2 003c [] "c" "user"}
        i < 20 {00 81 [..]}
        i !
        k = raw
        k > 10 {@ 02 003c []}
        k < 20 {00 81 [..]}
        k !
        l = raw
        l > 11 {@ 02 003c [] "c"}
        l < 20 {00 81 [..]}
        l !
        == 5 a password without a user name is allowed in 5.0 alone
        a = raw
        a > 10 {@ 42 003c [] "pass-only" "password"}
        a < 20 {00 00 [..]}
        == 45 all that may be there, in its order
        a = raw
        a > 10 {@ c6 003c [] "all-%" [] "w" "m" "user" "password"}
        a < 20 {00 00 [..]}
        == 45 empty user name and password, and bytes that are no text in the password
        a = raw
        a > 10 {@ c2 003c [] "empty-%" "" 0002 ff00}
        a < 20 {00 00 [..]}
        == 45 an empty will message
        a = raw
        a > 10 {@ 06 003c [] "empty-will-%" [] "w" ""}
        a < 20 {00 00 [..]}
        "##,
    )
    .await;
}

/// [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.4-3] [MQTT-3.1.3-4] [MQTT-3.1.3-11] [MQTT-3.1.3-12] [MQTT-4.7.3-1]
#[tokio::test]
async fn strings_of_connect_are_utf_8() {
    conforms(
        r##"
        == 4 not UTF-8, a surrogate, U+0000: closed
        a = raw
        a > 10 {@ 02 003c 0001 ff}
        a !
        b = raw
        b > 10 {@ 02 003c 0003 eda080}
        b !
        c = raw
        c > 10 {@ 02 003c 0002 6100}
        c !
        d = raw
        d > 10 {@ 06 003c "c" 0001 ff "m"}
        d !
        e = raw
        e > 10 {@ 82 003c "c" 0001 ff}
        e !
        f = raw
        f > 10 {@ 82 003c "c" 0002 6100}
        f !
        == 5 the same, told in CONNACK
        a = raw
        a > 10 {@ 02 003c [] 0001 ff}
        a < 20 {00 81 [..]}
        a !
        b = raw
        b > 10 {@ 02 003c [] 0003 eda080}
        b < 20 {00 81 [..]}
        b !
        c = raw
        c > 10 {@ 02 003c [] 0002 6100}
        c < 20 {00 81 [..]}
        c !
        d = raw
        d > 10 {@ 06 003c [] "c" [] 0001 ff "m"}
        d < 20 {00 81 [..]}
        d !
        e = raw
        e > 10 {@ 82 003c [] "c" 0001 ff}
        e < 20 {00 81 [..]}
        e !
        f = raw
        f > 10 {@ 06 003c [] "c" [] "w/#" "m"}
        f < 20 {00 90 [..]}
        f !
        g = raw
        g > 10 {@ 06 003c [] "c" [] "" "m"}
        g < 20 {00 90 [..]}
        g !
        == 45 U+FEFF is a character like any other
        a = raw
        a > 10 {@ 02 003c [] 0005 efbbbf 'b%'}
        a < 20 {00 00 [..]}
        "##,
    )
    .await;
}

/// [MQTT-3.1.3-2] [MQTT-3.1.3-5] [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.1.3-8] [MQTT-3.2.2-16] [v3 MQTT-3.1.3-7]
/// [v3 MQTT-3.1.3-8]
#[tokio::test]
async fn client_identifiers() {
    conforms(
        r##"
        == 45 all characters that must be allowed, 23 of them at a time, and one
        a = raw
        a > 10 {@ 02 003c [] "0123456789abcdefghijklm"}
        a < 20 {00 00 [..]}
        b = raw
        b > 10 {@ 02 003c [] "nopqrstuvwxyzABCDEFGHIJ"}
        b < 20 {00 00 [..]}
        c = raw
        c > 10 {@ 02 003c [] "KLMNOPQRSTUVWXYZ"}
        c < 20 {00 00 [..]}
        d = raw
        d > 10 {@ 02 003c [] "%"}
        d < 20 {00 00 [..]}
        == 4 none and Clean Session 1: one is given, without a word
        a = raw
        a > 10 {@ 02 003c ""}
        a < 20020000
        b = raw
        b > 10 {@ 02 003c ""}
        b < 20020000
        a > c000
        a < d000
        == 4 none and Clean Session 0
        a = raw
        a > 10 {@ 00 003c ""}
        a < 20020002
        a !
        == 5 none: one is given and told, with Clean Start 0 as well
        a = raw
        a > 10 {@ 02 003c [] ""}
        a < 20 {00 00 [21 ?? 27 ???? 12 ..]}
        b = raw
        b > 10 {@ 00 003c [] ""}
        b < 20 {00 00 [21 ?? 27 ???? 12 ..]}
        a > c000
        a < d000
        "##,
    )
    .await;
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT-3.1.2-23] [MQTT-3.1.4-3] [MQTT-3.1.4-4] [MQTT-3.2.2-2] [MQTT-3.2.2-3]
/// [MQTT-3.2.2-6] [v3 MQTT-3.1.2-4] [v3 MQTT-3.1.2-6]
#[tokio::test]
async fn session_present_and_take_over() {
    conforms(
        r##"
        == 4 Session Present in 3.1.1
        a = raw
        a > 10 {@ 00 003c "present-%"}
        a < 20020000
        a > e000
        a !
        b = raw
        b > 10 {@ 00 003c "present-%"}
        b < 20020100
        b > e000
        b !
        c = raw
        c > 10 {@ 02 003c "present-%"}
        c < 20020000
        c > e000
        c !
        d = raw
        d > 10 {@ 00 003c "present-%"}
        d < 20020000
        d > e000
        d !
        e = raw
        e > 10 {@ 02 003c "present-%"}
        e < 20020000
        == 5 Session Present in 5.0: the interval decides, Clean Start forgets
        a = raw
        a > 10 {@ 00 003c [11 00000e10] "present-%"}
        a < 20 {00 00 [..]}
        a > e000
        a !
        b = raw
        b > 10 {@ 00 003c [11 00000e10] "present-%"}
        b < 20 {01 00 [..]}
        b > e000
        b !
        c = raw
        c > 10 {@ 02 003c [11 00000e10] "present-%"}
        c < 20 {00 00 [..]}
        c > e0 {00 [11 00000000]}
        c !
        d = raw
        d > 10 {@ 00 003c [] "present-%"}
        d < 20 {00 00 [..]}
        == 5 a session taken over is told 8E
        a = raw
        a > 10 {@ 00 003c [11 00000e10] "taken-%"}
        a < 20 {00 00 [..]}
        b = raw
        b > 10 {@ 00 003c [11 00000e10] "taken-%"}
        b < 20 {01 00 [..]}
        a ! 8e
        b > e0 {00 [11 00000000]}
        b !
        == 4 a session taken over is closed
        a = raw
        a > 10 {@ 00 003c "taken-%"}
        a < 20020000
        b = raw
        b > 10 {@ 00 003c "taken-%"}
        b < 20020100
        a !
        c = raw
        c > 10 {@ 02 003c "taken-%"}
        c < 20020000
        b !
        "##,
    )
    .await;
}

/// CONNACK of a node as it is configured by default: what is limited, and nothing else. [MQTT-3.1.4-5] [MQTT-3.2.0-1]
/// [MQTT-3.2.2-1] [MQTT-3.2.2-22] [MQTT-3.1.2-28]
#[tokio::test]
async fn connack_says_what_is_limited() {
    conforms(
        r##"
        == 34 without properties in 3.x
        a = raw
        a > 10 {@ 02 003c "connack-%"}
        a < 20020000
        == 5 Receive Maximum, Maximum Packet Size, Topic Alias Maximum
        a = raw
        a > 10 {@ 02 003c [] "connack-%"}
        a < 20 {00 00 [21 ?? 27 00100000 22 ??]}
        == 5 no Response Information, asked for or not
        a = raw
        a > 10 {@ 02 003c [19 01] "connack-%"}
        a < 20 {00 00 [21 ?? 27 00100000 22 ??]}
        == 5 a Keep Alive of 0 is granted
        a = raw
        a > 10 {@ 02 0000 [] "connack-%"}
        a < 20 {00 00 [21 ?? 27 00100000 22 ??]}
        == 5 an authentication method that there is not, and data without one
        a = raw
        a > 10 {@ 02 003c [15 "SCRAM-SHA-1"] "method"}
        a < 20 {00 8c [..]}
        a !
        b = raw
        b > 10 {@ 02 003c [16 0001 00] "method"}
        b < 20 {00 82 [..]}
        b !
        == 5 a CONNACK larger than the client takes is not sent
        a = raw
        a > 10 {@ 02 003c [27 00000004] "connack-%"}
        a !
        == 5 the reason string is left out if only that makes it too large
        a = raw
        a > 10 {@ 03 003c [] "connack-%"}
        a < 20 {00 81 [1f ..]}
        a !
        "##,
    )
    .await;
}
