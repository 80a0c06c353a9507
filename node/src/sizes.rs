#![allow(unused)]
use crate::*;
macro_rules! size { ($name:ident, $t:ty) => { const $name: [(); 0] = [(); size_of::<$t>()]; } }
size!(CLIENT, worker::Client);
size!(CONNECTION, protocol::connection::Connection);
size!(ACCEPTED, protocol::handshake::Accepted);
size!(OUTBOUND, protocol::publish_out::Outbound);
size!(INBOUND, protocol::publish_in::Inbound);
size!(PUBLISHES, session::publishes::Publishes);
size!(REPLAYS, session::retained::Replays);
size!(OPERATIONS, session::operations::Operations);
size!(CREDIT, hub::CreditBook);
size!(ACCESS, auth::Access);
size!(IDENTITY, auth::identity::Identity);
size!(FLOW, limits::flow::Flow);
size!(PLACE, limits::admission::Place);
size!(USERPLACE, limits::admission::UserPlace);
size!(EXCHANGE, auth::scram::Exchange);
size!(POLICY, protocol::handshake::Policy);
size!(EFFECTS, protocol::publish_out::Effects);
size!(OUTPUT, protocol::connection::Output);
size!(STREAM, gateway::socket::Stream);
size!(PEER, gateway::peer::Peer);
size!(SESSION, lontra_storage::meta::Session);
size!(NOTIFY, tokio::sync::Notify);
size!(PUBLISH, protocol::codec::Publish);
