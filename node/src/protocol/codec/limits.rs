//! What one frame may cost, checked before anything is allocated for it (`budget-first`).

/// Budgets of one frame. A client may be told [`Limits::packet_bytes`] as Maximum Packet Size; the others are the
/// broker's own protection. Too low refuses honest clients, too high lets one frame cost memory many times its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a whole packet, fixed header included; above it 0x95. Default 1 MiB, at most 268,435,460.
    pub packet_bytes: usize,
    /// Bytes of a whole packet that is not PUBLISH, CONNECT included; above it 0x95. Default 256 KiB: a CONNECT with a
    /// full Will Payload, password and Authentication Data fits.
    pub control_packet_bytes: usize,
    /// Filters in one SUBSCRIBE, above it 0x97 for each; or UNSUBSCRIBE, whose answer has no such code: the connection ends
    /// with 0x97. Default 1,000.
    pub filters_per_packet: usize,
    /// User Properties in one property block; above it 0x97. Default 128.
    pub user_properties: usize,
    /// Bytes of a Topic Name or Topic Filter; a name above it is 0x90, a filter is refused alone with 0x8F. Default
    /// 65,535, which is all the protocol can express.
    pub topic_bytes: usize,
    /// Levels of a Topic Name or Topic Filter; same answers as `topic_bytes`. Default 128: bounds the depth of the
    /// topic tree.
    pub topic_levels: usize,
}

impl Limits {
    /// The protocol's own bounds and nothing else; for frames this node has just written itself.
    pub(super) const PROTOCOL: Limits = Limits {
        packet_bytes: usize::MAX,
        control_packet_bytes: usize::MAX,
        filters_per_packet: usize::MAX,
        user_properties: usize::MAX,
        topic_bytes: usize::MAX,
        topic_levels: usize::MAX,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            packet_bytes: 1024 * 1024,
            control_packet_bytes: 256 * 1024,
            filters_per_packet: 1_000,
            user_properties: 128,
            topic_bytes: 65_535,
            topic_levels: 128,
        }
    }
}
