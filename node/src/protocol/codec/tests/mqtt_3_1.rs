//! MQTT 3.1 (`MQIsdp`, level 3): where it differs from 3.1.1, and that the rest is as strict.

use super::table::check_table;

#[test]
fn every_row_of_the_3_1_table_holds() {
    assert!(check_table(FRAMES_3_1) >= 15);
}

#[test]
fn a_promised_user_name_may_be_missing() {
    use super::*;
    let receive = |frame| match receive(frame, Version::V3_1, Direction::ClientToServer) {
        Ok(Packet::Connect(connect)) => (connect.user_name, connect.password),
        other => panic!("{other:?}"),
    };
    assert_eq!(receive("100f00064d51497364700382003c000163"), (None, None));
    assert_eq!(
        receive("101200064d514973647003c2003c000163000175"),
        (Some("u".to_owned()), None)
    );
}

pub(super) const FRAMES_3_1: &str = "\
v3.connect.ok\t3\tc2s\t100f00064d51497364700302003c000163\tOK\t-\t-
v3.connect.user-pass\t3\tc2s\t101500064d514973647003c2003c000163000175000170\tOK\t-\tpass=70
v3.connect.user-missing\t3\tc2s\t100f00064d51497364700382003c000163\tOK\t-\t-
v3.connect.pass-missing\t3\tc2s\t101200064d514973647003c2003c000163000175\tOK\t-\tuser=75
v3.connect.pass-no-user\t3\tc2s\t101200064d51497364700342003c000163000170\tREJECT\t0x81\t-
v3.connect.flag-bit0\t3\tc2s\t100f00064d51497364700303003c000163\tOK\t-\t-
v3.connect.will-qos-without-will\t3\tc2s\t100f00064d5149736470032a003c000163\tOK\t-\t-
v3.connect.will\t3\tc2s\t101500064d5149736470030e003c00016300017700016d\tOK\t-\t-
v3.connect.will-qos3\t3\tc2s\t101500064d5149736470031e003c00016300017700016d\tREJECT\t0x81\t-
v3.connect.will-wildcard\t3\tc2s\t101500064d5149736470030e003c00016300012300016d\tREJECT\t0x90\t-
v3.connect.empty-id\t3\tc2s\t100e00064d51497364700302003c0000\tREJECT\t0x85\t-
v3.connect.id-24\t3\tc2s\t102600064d51497364700302003c0018616161616161616161616161616161616161616161616161\tOK\t-\t-
v3.connect.level4\t3\tc2s\t100f00064d51497364700402003c000163\tREJECT\t0x84\t-
v3.connect.name-mqtt-level3\t3\tc2s\t100d00044d5154540302003c000163\tREJECT\t0x84\t-
v3.connect.trailing\t3\tc2s\t101000064d51497364700302003c00016300\tREJECT\t0x81\t-
v3.connect.fixed-flags\t3\tc2s\t180f00064d51497364700302003c000163\tREJECT\t0x81\t-
v3.connack.ok\t3\ts2c\t20020000\tOK\t-\t-
v3.connack.reserved-byte\t3\ts2c\t2002ff00\tOK\t-\t-
v3.connack.not-authorized\t3\ts2c\t20020005\tOK\t-\t-
v3.connack.code6\t3\ts2c\t20020006\tREJECT\t0x81\t-
v3.publish.qos1\t3\tc2s\t32090003612f6200016869\tOK\t-\tpayload=6869
v3.publish.dup-qos0\t3\tc2s\t38070003612f626869\tREJECT\t0x81\t-
v3.publish.padded-length\t3\tc2s\t3087000003612f626869\tOK\t-\tpayload=6869
v3.publish.wildcard\t3\tc2s\t30050003612f23\tREJECT\t0x90\t-
v3.publish.empty-topic\t3\tc2s\t300400006869\tREJECT\t0x90\t-
v3.puback.ok\t3\tc2s\t40020007\tOK\t-\t-
v3.puback.dup\t3\tc2s\t48020007\tREJECT\t0x81\t-
v3.pubrel.ok\t3\tc2s\t62020007\tOK\t-\t-
v3.pubrel.resent\t3\tc2s\t6a020007\tOK\t-\t-
v3.subscribe.ok\t3\tc2s\t8206000100016102\tOK\t-\t-
v3.subscribe.resent\t3\tc2s\t8a06000100016102\tOK\t-\t-
v3.subscribe.flags0\t3\tc2s\t8006000100016102\tREJECT\t0x81\t-
v3.subscribe.no-local\t3\tc2s\t8206000100016104\tREJECT\t0x81\t-
v3.unsubscribe.ok\t3\tc2s\ta2050001000161\tOK\t-\t-
v3.unsubscribe.resent\t3\tc2s\taa050001000161\tOK\t-\t-
v3.suback.ok\t3\ts2c\t9003000102\tOK\t-\t-
v3.unsuback.ok\t3\ts2c\tb0020001\tOK\t-\t-
v3.pingreq.ok\t3\tc2s\tc000\tOK\t-\t-
v3.disconnect.ok\t3\tc2s\te000\tOK\t-\t-
v3.disconnect.s2c\t3\ts2c\te000\tREJECT\t0x82\t-
v3.auth\t3\tc2s\tf000\tREJECT\t0x81\t-
v4.pubrel.resent\t4\tc2s\t6a020007\tREJECT\t0x81\t-
v4.publish.padded-length\t4\tc2s\t3087000003612f626869\tOK\t-\tpayload=6869
v5.publish.padded-length\t5\tc2s\t3088000003612f62006869\tREJECT\t0x81\t-
v4.connect.padded-length\t4\tc2s\t108d0000044d5154540402003c000163\tOK\t-\t-
v5.connect.padded-length\t5\tc2s\t108e0000044d5154540502003c00000163\tREJECT\t0x81\t-
";
