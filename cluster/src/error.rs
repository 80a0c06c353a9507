//! What can go wrong between a node and its cluster, in the operator's words.

use lontra_storage::ids::GroupId;

use crate::link::LinkError;

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("group {group} cannot be recovered from the data directory")]
    Recover {
        group: GroupId,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the timing of the cluster does not fit: {what}")]
    Timing { what: String },
    #[error("peer links cannot be started")]
    Link(#[from] LinkError),
    #[error("a cluster of {members} nodes needs certificates: set cluster.tls (see `lontra cert`)")]
    NoCertificates { members: usize },
    #[error("storage failed")]
    Storage(#[from] std::io::Error),
}

/// Why an operation on the control plane has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Nothing was changed: nobody took it, or its client went before. Asking again is safe.
    #[error("the control plane did not answer in time: {what}")]
    Unavailable { what: &'static str },
    /// It was proposed and not answered: it may have been carried out, or be so yet.
    #[error("whether it was carried out is not known: {what}")]
    Unknown { what: &'static str },
    /// The session, epoch or incarnation is not current any more.
    #[error("not the current owner")]
    Stale,
}
