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
    /// Nothing was changed, or it will be repeated by nobody: the client must ask again.
    #[error("the control plane did not answer in time: {what}")]
    Unavailable { what: &'static str },
    /// The session, epoch or incarnation is not current any more.
    #[error("not the current owner")]
    Stale,
}
