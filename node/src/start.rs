//! Placeholder until the lead's `start.rs` is here: it must keep the name and the signature of [`serve`].

use crate::config::Config;

/// Why a node does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("this build has no node in it yet (node {id}): nothing can be served")]
    NotBuilt { id: u64 },
}

/// Runs a node until SIGTERM or SIGINT; then drains it.
///
/// # Errors
/// It could not start, or had to stop.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    Err(ServeError::NotBuilt { id: config.node.id })
}
