//! The other end of MQTT: a client, for `lontra pub`, `lontra sub`, and later the load generator and bridges.
//!
//!     bytes ─▶ connection ─┬─ exchanges   what this client asked for: PUBLISH, SUBSCRIBE, UNSUBSCRIBE
//!     bytes ◀─             ├─ receipts    what it was sent and still has to answer
//!              ▲           └─ keep_alive  when to ping, when to give up
//!              │ sans-io: packets and `now` come in, bytes and events go out; the codec is the node's own
//!     io ──────┘ one task's reading, writing and timers over a `transport`: TCP, `tls` over it, `framed` (WebSocket) over
//!                either, as the `address` says
//!
//! What it leaves to others: reconnecting. A connection ends with an error that says why; whoever wants to go on opens
//! another one.

mod address;
mod connection;
mod exchanges;
mod framed;
mod io;
mod keep_alive;
mod receipts;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod transport;
pub mod websocket;

pub use address::Address;
pub use connection::{Connection, ConnectionEnd, Event, RequestError};
pub use io::{Client, ClientError};
pub use transport::{ConnectError, Transport, connect};
