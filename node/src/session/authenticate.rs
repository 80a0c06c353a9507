//! Enhanced authentication: what the client sent goes to `auth::scram`, what it says back to the connection.
//!
//! Nothing here waits: no step hashes a password.

use std::rc::Rc;
use std::time::Instant;

use ring::rand::{SecureRandom, SystemRandom};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::auth::chain::Refused;
use crate::auth::scram;
use crate::protocol::codec::ReasonCode;
use crate::session::admit;
use crate::worker::{Client, Worker};

/// Takes the client's next step.
pub fn step(worker: &Rc<Worker>, client: &Rc<Client>, data: &[u8]) {
    let under_way = client.exchange.borrow_mut().take();
    if under_way.is_none()
        && let Err(reason) = may_begin(worker, client)
    {
        return client.connection.borrow_mut().not_authenticated(reason);
    }
    let mut connection = client.connection.borrow_mut();
    let failed = match under_way {
        None => match scram::begin(&worker.auth().users, data, &nonce()) {
            Ok((exchange, challenge)) => {
                *client.exchange.borrow_mut() = Some(Box::new(exchange));
                return connection.challenge(challenge);
            }
            Err(failed) => failed,
        },
        Some(exchange) => match exchange.finish(data) {
            // Whether it still holds is looked at when it is attached; one that is connected is the same user.
            Ok((identity, proof)) if worker.auth().still_knows(&identity) => {
                return connection.authenticated(identity, proof);
            }
            Ok(_) => scram::Failed::Wrong,
            Err(failed) => failed,
        },
    };
    let refused = Refused::from(failed);
    tracing::debug!(
        client = connection.client_id(),
        peer = %client.peer,
        listener = client.config.name,
        ?failed,
        "a client did not authenticate"
    );
    worker.metrics.authenticated(&Err(refused));
    let address = client.peer.address.map(|address| address.ip());
    client.config.guard.login_failed(address, Instant::now());
    connection.not_authenticated(refused.reason());
}

/// Who is banned proves nothing, and is told nothing of its password.
fn may_begin(worker: &Worker, client: &Client) -> Result<(), ReasonCode> {
    let client_id = client.connection.borrow().authenticating().map(str::to_owned);
    let Some(client_id) = client_id else { return Ok(()) };
    admit::client_id(worker, client, &client_id)?;
    admit::login(worker, client)?;
    let address = client.peer.address.map(|address| address.ip());
    match worker.auth().acl.cluster.ban_of(&client_id, None, address) {
        None => Ok(()),
        Some(_) => {
            worker.metrics.authenticated(&Err(Refused::Banned));
            Err(ReasonCode::BANNED)
        }
    }
}

/// Fresh for each exchange: what a client proved in another proves nothing in this one.
fn nonce() -> String {
    let mut bytes = [0; NONCE_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system gives random bytes");
    STANDARD_NO_PAD.encode(bytes)
}

const NONCE_BYTES: usize = 18;
