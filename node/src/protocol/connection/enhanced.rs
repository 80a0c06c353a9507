//! Enhanced authentication: AUTH before CONNACK, and again while the client is connected. [MQTT-4.12]
//!
//! ```text
//!   CONNECT ─▶ Authenticate ─▶ challenge: AUTH 0x18 ─▶ AUTH 0x18 ─▶ Authenticate ─▶ authenticated: Connect, CONNACK
//!   AUTH 0x19 ─▶ Authenticate ─▶ challenge: AUTH 0x18 ─▶ AUTH 0x18 ─▶ Authenticate ─▶ authenticated: AUTH 0x00
//! ```
//!
//! It knows who may say what when; what the data mean is for `auth::scram`, which `session::authenticate` asks. All other packets go
//! on while a connected client proves itself again. [MQTT-4.12.1]

use bytes::Bytes;

use super::{Connection, Output, State};
use crate::auth::identity::Identity;
use crate::auth::scram::METHOD;
use crate::protocol::codec::{Auth, Packet, ReasonCode};
use crate::protocol::handshake::Proven;

/// How far a connected client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::protocol) enum Again {
    /// Its CONNECT named no method: it sends no AUTH. [MQTT-4.12.0-7]
    #[default]
    Never,
    Idle,
    UnderWay,
}

impl Again {
    pub(super) fn offer(&mut self, has_method: bool) {
        *self = if has_method { Again::Idle } else { Again::Never };
    }
}

impl Connection {
    /// AUTH is on its way to and fro, before CONNACK.
    pub fn is_authenticating(&self) -> bool {
        matches!(self.state, State::Authenticating(_))
    }

    /// The client id of one that is, before CONNACK.
    pub fn authenticating(&self) -> Option<&str> {
        match &self.state {
            State::Authenticating(accepted) => Some(&accepted.client_id),
            _ => None,
        }
    }

    /// Until CONNACK a client sends AUTH or DISCONNECT. [MQTT-3.1.2-30]
    pub(super) fn authenticating_packet(&mut self, packet: Packet) {
        match packet {
            Packet::Auth(auth) => match step(auth, ReasonCode::CONTINUE_AUTHENTICATION) {
                Ok(data) => self.outputs.push(Output::Authenticate { data }),
                Err((reason, why)) => self.refuse(reason, Some(why)),
            },
            Packet::Disconnect(_) => self.lost(),
            _ => self.refuse(ReasonCode::PROTOCOL_ERROR, Some("only AUTH may come now")),
        }
    }

    /// AUTH of a connected client.
    pub(super) fn auth_again(&mut self, auth: Auth) {
        let expected = match self.again {
            Again::Never => {
                return self.close(ReasonCode::PROTOCOL_ERROR, Some("no authentication method is in use"));
            }
            Again::Idle => ReasonCode::RE_AUTHENTICATE,
            Again::UnderWay => ReasonCode::CONTINUE_AUTHENTICATION,
        };
        match step(auth, expected) {
            Ok(data) => {
                self.again = Again::UnderWay;
                self.outputs.push(Output::Authenticate { data });
            }
            Err((reason, why)) => self.close(reason, Some(why)),
        }
    }

    /// The client is to go on. [MQTT-4.12.0-2]
    pub fn challenge(&mut self, data: Vec<u8>) {
        self.send_auth(ReasonCode::CONTINUE_AUTHENTICATION, data);
    }

    /// It has proven who it is: CONNACK will say so, or AUTH does. One that is connected must be who it was.
    pub fn authenticated(&mut self, identity: Identity, data: Vec<u8>) {
        match std::mem::replace(&mut self.state, State::Attaching) {
            State::Authenticating(mut accepted) => {
                accepted.proven = Some(Proven {
                    identity,
                    data: data.into(),
                });
                self.outputs.push(Output::Connect(accepted));
            }
            State::Connected => {
                self.state = State::Connected;
                self.again = Again::Idle;
                match identity.user == self.user_name {
                    true => self.send_auth(ReasonCode::SUCCESS, data),
                    false => self.close(ReasonCode::NOT_AUTHORIZED, Some("it has shown to be another user")),
                }
            }
            state => self.state = state,
        }
    }

    /// It has not: it is told, and let go. [MQTT-4.12.0-4] [MQTT-4.12.1-2]
    pub fn not_authenticated(&mut self, reason: ReasonCode) {
        match self.state {
            State::Authenticating(_) => self.refuse(reason, None),
            // DISCONNECT knows no 0x86.
            _ => self.close(ReasonCode::NOT_AUTHORIZED, Some("it has not shown who it is")),
        }
    }

    /// [MQTT-4.12.0-5]: the method of CONNECT in each.
    fn send_auth(&mut self, reason: ReasonCode, data: Vec<u8>) {
        let Some(answers) = self.answers else { return };
        if matches!(self.state, State::Authenticating(_) | State::Connected)
            && !answers.auth(reason, METHOD, data.into(), &mut self.out)
        {
            self.close(ReasonCode::PACKET_TOO_LARGE, None);
        }
    }
}

/// The data of an AUTH that comes in its turn.
fn step(auth: Auth, expected: ReasonCode) -> Result<Bytes, (ReasonCode, &'static str)> {
    if auth.reason != expected {
        return Err((ReasonCode::PROTOCOL_ERROR, "this AUTH does not come in its turn"));
    }
    // [MQTT-4.12.0-5] [MQTT-4.12.1-1]
    if auth.authentication_method.as_deref() != Some(METHOD) {
        return Err((
            ReasonCode::BAD_AUTHENTICATION_METHOD,
            "the method is not that of CONNECT",
        ));
    }
    Ok(auth.authentication_data.unwrap_or_default())
}
