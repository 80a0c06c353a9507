//! MQTT 3.1 (`MQIsdp`) where it differs from 3.1.1, byte for byte, and the versions beside each other: one node and three
//! answer alike. What all versions have in common is in the other files, whose conversations run as 3.1 too.

use crate::support::script::{conforms, failures};

#[tokio::test]
async fn connect_of_3_1() {
    conforms(
        r##"
        == 3 accepted; the first byte of CONNACK is reserved, so never Session Present
        a = raw
        a > 10 {@ 00 003c "old"}
        a < 20020000
        a > e000
        a !
        b = raw
        b > 10 {@ 00 003c "old"}
        b < 20020000
        b > e000
        b !
        c = raw
        c > 10 {@ 02 003c "old"}
        c < 20020000
        == 3 the session is there all the same
        a = raw
        a > 10 {@ 00 003c "old-session"}
        a < 20020000
        a > 82 {0001 "old/session" 01}
        a < 90 {0001 01}
        a > e000
        a !
        b = @
        b > 32 {"old/session" 0001 'x'}
        b < 40 {0001}
        c = raw
        c > 10 {@ 00 003c "old-session"}
        c < 20020000
        c < 32 {"old/session" $one 'x'}
        c > 40 {$one}
        c > e000
        c !
        d = raw
        d > 10 {@ 02 003c "old-session"}
        d < 20020000
        == 3 levels and names that do not go together
        a = raw
        a > 10 {"MQIsdp" 04 02 003c "c"}
        a !
        b = raw
        b > 10 {"MQTT" 03 02 003c "c"}
        b < 20020001
        b !
        == 3 an empty Client Identifier, whatever Clean Session says
        a = raw
        a > 10 {@ 02 003c ""}
        a < 20020002
        a !
        b = raw
        b > 10 {@ 00 003c ""}
        b < 20020002
        b !
        == 3 Client Identifiers of 1, 23 and (others allow it) 24 characters
        a = raw
        a > 10 {@ 02 003c "1"}
        a < 20020000
        b = raw
        b > 10 {@ 02 003c "23456789012345678901234"}
        b < 20020000
        c = raw
        c > 10 {@ 02 003c "234567890123456789012345"}
        c < 20020000
        == 3 bit 0 of the flags, and the will's bits without a will, are ignored
        a = raw
        a > 10 {@ 03 003c "bit-0"}
        a < 20020000
        b = raw
        b > 10 {@ 2a 003c "will-bits"}
        b < 20020000
        == 3 a user name or password that the flags promise may be missing
        a = raw
        a > 10 {@ 82 003c "no-user"}
        a < 20020000
        b = raw
        b > 10 {@ c2 003c "no-password" "user"}
        b < 20020000
        == 3 what is wrong closes: will QoS 3, bytes behind the last field, wildcards in a will's topic
        a = raw
        a > 10 {@ 1e 003c "c" "w" "m"}
        a !
        b = raw
        b > 10 {@ 02 003c "c" 00}
        b !
        c = raw
        c > 10 {@ 06 003c "c" "w/#" "m"}
        c < 20020005
        c !
        "##,
    )
    .await;
}

#[tokio::test]
async fn packets_of_3_1() {
    conforms(
        r##"
        == 3 what is sent again has DUP: SUBSCRIBE, UNSUBSCRIBE, PUBREL
        a = @
        a > 8a {0001 "dup/3" 02}
        a < 90 {0001 02}
        a > aa {0002 "dup/3"}
        a < b0 {0002}
        a > 34 {"dup/3" 0003 'x'}
        a < 50 {0003}
        a > 6a {0003}
        a < 70 {0003}
        == 3 a refused filter is 80 here too: 3.1 has no other way to say it
        a = @
        a > 82 {0001 "////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////////" 02}
        a < 90 {0001 80}
        == 3 a Remaining Length that is longer than needed
        a = @
        a > c08000
        a < d000
        == 3 AUTH and UNSUBACK codes are of 5.0
        a = @
        a > f000
        a !
        "##,
    )
    .await;
}

#[tokio::test]
async fn versions_hear_each_other() {
    conforms(
        r##"
        == 345 each version publishes, each hears it in its own form
        a = raw
        a > 10 {"MQIsdp" 03 02 003c "hears-3-%"}
        a < 20020000
        a > 82 {0001 "hears/%" 01}
        a < 90 {0001 01}
        b = raw
        b > 10 {"MQTT" 04 02 003c "hears-4-%"}
        b < 20020000
        b > 82 {0001 "hears/%" 01}
        b < 90 {0001 01}
        c = raw
        c > 10 {"MQTT" 05 02 003c 00 "hears-5-%"}
        c < 20 {..}
        c > 82 {0001 00 "hears/%" 01}
        c < 90 {0001 00 01}
        d = @
        d > 32 {"hears/%" 0001 [] 'x'}
        d < 40 {0001}
        a < 32 {"hears/%" $a 'x'}
        b < 32 {"hears/%" $b 'x'}
        c < 32 {"hears/%" $c 00 'x'}
        == 4 a session keeps its messages when its client comes back as 5.0
        a = raw
        a > 10 {"MQTT" 04 00 003c "upgrade"}
        a < 20020000
        a > 82 {0001 "upgrade/t" 01}
        a < 90 {0001 01}
        a > e000
        a !
        b = @
        b > 32 {"upgrade/t" 0001 'x'}
        b < 40 {0001}
        c = raw
        c > 10 {"MQTT" 05 00 003c 05 11 00000000 "upgrade"}
        c < 20 {01 00 {..}}
        c < 32 {"upgrade/t" $c 00 'x'}
        c > 40 {$c}
        "##,
    )
    .await;
}

/// The tests of the tests: each of these expects something wrong, and every one is found, on one node and on three.
#[tokio::test]
async fn an_answer_that_is_wrong_is_found() {
    let planted = r##"
        == 5 another code
        a = @
        a > 30 {"#" [] 'x'}
        a ! 81
        == 5 an end that does not come
        a = @
        a > c000
        a !
        == 5 an answer too many
        a = @
        a > 82 {0001 [] "planted" 00}
        a -
        == 5 another byte
        a = @
        a > 82 {0001 [] "planted" 00}
        a < 90 {0001 [] 01}
        == 5 a byte less than expected
        a = @
        a > 82 {0001 [] "planted" 00}
        a < 90 {0001 [] 0000}
        == 5 a byte more than expected
        a = @
        a > 82 {0001 [] "planted" 00}
        a < 90 {0001 []}
        == 4 a reason where there is none
        a = @
        a > c100
        a < e0 {81}
        "##;
    let found = failures(planted).await;
    assert_eq!(found.len(), 2 * planted.matches("== ").count(), "{found:?}");
}
