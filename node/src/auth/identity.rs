//! Who a client is, and who says so.

use std::sync::Arc;

use lontra_storage::ids::MetaIndex;
use serde::{Deserialize, Serialize};

use super::password_file::User;

/// A way to find out who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// User name and password of CONNECT, against `auth.password_file`.
    Password,
    /// User name and password of CONNECT, against the users that the cluster keeps (`lontra user --node`).
    Cluster,
}

impl Method {
    pub const ALL: [Method; 2] = [Method::Password, Method::Cluster];

    pub fn name(self) -> &'static str {
        match self {
            Method::Password => "password",
            Method::Cluster => "cluster",
        }
    }

    /// What configures it.
    pub fn key(self) -> &'static str {
        match self {
            Method::Password => "auth.password_file",
            Method::Cluster => "auth.cluster_users",
        }
    }
}

/// Of one connection.
#[derive(Clone, Debug)]
pub struct Identity {
    /// None: nobody vouches for one. What a client says of itself is not believed.
    pub user: Option<Box<str>>,
    pub groups: Vec<Box<str>>,
    pub proof: Proof,
}

/// What the identity rests on, so that a reload can tell whether it still does.
#[derive(Clone, Debug)]
pub enum Proof {
    None,
    Password(Arc<User>),
    /// The entry of meta that made the user what it is.
    Cluster(MetaIndex),
}

impl Identity {
    pub fn anonymous() -> Self {
        Identity {
            user: None,
            groups: Vec::new(),
            proof: Proof::None,
        }
    }
}
