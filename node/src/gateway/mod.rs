//! Gateways: how bytes of clients come in and go out. Transports are adapters of one session.

pub mod tcp;
