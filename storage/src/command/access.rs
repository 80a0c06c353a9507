//! What the log says of who may do what: users, rules, bans, keys of the admin API; and what apply answers.
//!
//! Password hashes and key digests are opaque here, and have no text in logs. Rules are text whose grammar only the node knows:
//! it looks at them before it proposes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::MetaIndex;

/// Bytes that no log line may show: a password hash, the digest of a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(Box<[u8]>);

impl Hidden {
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Hidden(bytes.into())
    }

    /// For whoever checks it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Whom a ban is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BanTarget {
    Client(Box<str>),
    /// A user name that somebody vouches for.
    User(Box<str>),
    Network(Subnet),
}

/// Addresses that begin with the same bits. IPv4 that came in over IPv6 (`::ffff:10.0.0.1`) is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// `None` if there are not as many bits, or bits behind the prefix are set.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Subnet> {
        let (address, prefix) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(mapped)) if prefix >= MAPPED_BITS => (IpAddr::V4(mapped), prefix - MAPPED_BITS),
            _ => (address, prefix),
        };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits && masked(address, prefix) == address).then_some(Subnet { address, prefix })
    }

    /// The network of `prefix` bits that a canonical address lies in, if it has as many.
    pub fn around(address: IpAddr, prefix: u8) -> Option<Subnet> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then(|| Subnet {
            address: masked(address, prefix),
            prefix,
        })
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

/// What a key of the admin API may do; each may what the one before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRole {
    Read,
    Operate,
    Admin,
}

impl KeyRole {
    pub const ALL: [KeyRole; 3] = [KeyRole::Read, KeyRole::Operate, KeyRole::Admin];
}

/// Operations on who may do what. Each may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessOp {
    /// A user comes, or changes. `None` keeps what it has; a user that comes needs a record, and has no groups otherwise.
    PutUser {
        name: Box<str>,
        record: Option<Hidden>,
        groups: Option<Vec<Box<str>>>,
    },
    RemoveUser {
        name: Box<str>,
    },
    /// All rules, in their order. Void if `version` is given and is not that of the present ones.
    SetRules {
        rules: Vec<Box<str>>,
        version: Option<MetaIndex>,
    },
    /// For `seconds` of log time, or for good. With `only_longer` a ban that lasts as long stays as it is: what a machine
    /// decides does not shorten what a person has.
    PutBan {
        target: BanTarget,
        seconds: Option<u32>,
        reason: Box<str>,
        by: Box<str>,
        only_longer: bool,
    },
    RemoveBan {
        target: BanTarget,
    },
    /// Removes at most `limit` bans that have ended in log time.
    ExpireBans {
        limit: u32,
    },
    /// `authority` is the key that was shown; none: there was none yet. Void if that is not so any more.
    PutKey {
        id: Box<str>,
        digest: Hidden,
        role: KeyRole,
        label: Box<str>,
        authority: Option<Box<str>>,
    },
    /// The last key goes only if `even_last`.
    RemoveKey {
        id: Box<str>,
        even_last: bool,
        authority: Option<Box<str>>,
    },
}

/// What apply answers to an [`AccessOp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessReply {
    /// Whether what it is about was there before.
    Done { existed: bool },
    /// A change of what is not there.
    NotFound,
    /// The rules have changed since, or the key's id is taken.
    Conflict,
    /// There are as many as may be.
    Full,
    /// Without it no key could administer.
    NeedsAdmin,
    /// The key that was shown is gone, or may not do this; or none was shown, and there is one by now.
    Unauthorised,
    /// ExpireBans.
    Expired { count: u32 },
}

const ACCESS_VERSION: u8 = 1;
/// Of an IPv6 address whose rest is an IPv4 address.
const MAPPED_BITS: u8 = 96;

impl AccessOp {
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u8(ACCESS_VERSION);
        match self {
            AccessOp::PutUser { name, record, groups } => {
                writer.u8(0).str(name).option(record.as_ref(), |w, record| {
                    w.bytes(record.expose());
                });
                writer.option(groups.as_deref(), super::meta::write_strings);
            }
            AccessOp::RemoveUser { name } => {
                writer.u8(1).str(name);
            }
            AccessOp::SetRules { rules, version } => {
                writer.u8(2);
                super::meta::write_strings(writer, rules);
                writer.option(*version, |w, version| {
                    w.var(version.0);
                });
            }
            AccessOp::PutBan {
                target,
                seconds,
                reason,
                by,
                only_longer,
            } => {
                writer.u8(3);
                target.write(writer);
                writer.option(*seconds, |w, seconds| {
                    w.var(u64::from(seconds));
                });
                writer.str(reason).str(by).bool(*only_longer);
            }
            AccessOp::RemoveBan { target } => {
                writer.u8(4);
                target.write(writer);
            }
            AccessOp::ExpireBans { limit } => {
                writer.u8(5).var(u64::from(*limit));
            }
            AccessOp::PutKey {
                id,
                digest,
                role,
                label,
                authority,
            } => {
                writer.u8(6).str(id).bytes(digest.expose()).u8(role.code()).str(label);
                write_authority(writer, authority);
            }
            AccessOp::RemoveKey {
                id,
                even_last,
                authority,
            } => {
                writer.u8(7).str(id).bool(*even_last);
                write_authority(writer, authority);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<AccessOp, DecodeError> {
        if reader.u8()? != ACCESS_VERSION {
            return Err(reader.error());
        }
        Ok(match reader.u8()? {
            0 => AccessOp::PutUser {
                name: reader.str()?.into(),
                record: reader.option(read_hidden)?,
                groups: reader.option(super::meta::read_strings)?,
            },
            1 => AccessOp::RemoveUser {
                name: reader.str()?.into(),
            },
            2 => AccessOp::SetRules {
                rules: super::meta::read_strings(reader)?,
                version: reader.option(|r| r.var().map(MetaIndex))?,
            },
            3 => AccessOp::PutBan {
                target: BanTarget::read(reader)?,
                seconds: reader.option(|r| r.var32())?,
                reason: reader.str()?.into(),
                by: reader.str()?.into(),
                only_longer: reader.bool()?,
            },
            4 => AccessOp::RemoveBan {
                target: BanTarget::read(reader)?,
            },
            5 => AccessOp::ExpireBans { limit: reader.var32()? },
            6 => AccessOp::PutKey {
                id: reader.str()?.into(),
                digest: read_hidden(reader)?,
                role: KeyRole::read(reader)?,
                label: reader.str()?.into(),
                authority: read_authority(reader)?,
            },
            7 => AccessOp::RemoveKey {
                id: reader.str()?.into(),
                even_last: reader.bool()?,
                authority: read_authority(reader)?,
            },
            _ => return Err(reader.error()),
        })
    }
}

impl AccessReply {
    pub(super) fn write(&self, writer: &mut Writer) {
        match self {
            AccessReply::Done { existed } => {
                writer.u8(0).bool(*existed);
            }
            AccessReply::NotFound => {
                writer.u8(1);
            }
            AccessReply::Conflict => {
                writer.u8(2);
            }
            AccessReply::Full => {
                writer.u8(3);
            }
            AccessReply::NeedsAdmin => {
                writer.u8(4);
            }
            AccessReply::Unauthorised => {
                writer.u8(5);
            }
            AccessReply::Expired { count } => {
                writer.u8(6).var(u64::from(*count));
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<AccessReply, DecodeError> {
        Ok(match reader.u8()? {
            0 => AccessReply::Done {
                existed: reader.bool()?,
            },
            1 => AccessReply::NotFound,
            2 => AccessReply::Conflict,
            3 => AccessReply::Full,
            4 => AccessReply::NeedsAdmin,
            5 => AccessReply::Unauthorised,
            6 => AccessReply::Expired { count: reader.var32()? },
            _ => return Err(reader.error()),
        })
    }
}

impl BanTarget {
    pub(crate) fn write(&self, writer: &mut Writer) {
        match self {
            BanTarget::Client(client_id) => writer.u8(0).str(client_id),
            BanTarget::User(name) => writer.u8(1).str(name),
            BanTarget::Network(Subnet {
                address: IpAddr::V4(address),
                prefix,
            }) => writer.u8(2).raw(&address.octets()).u8(*prefix),
            BanTarget::Network(Subnet {
                address: IpAddr::V6(address),
                prefix,
            }) => writer.u8(3).raw(&address.octets()).u8(*prefix),
        };
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<BanTarget, DecodeError> {
        let address = match reader.u8()? {
            0 => return Ok(BanTarget::Client(reader.str()?.into())),
            1 => return Ok(BanTarget::User(reader.str()?.into())),
            2 => IpAddr::V4(Ipv4Addr::from_bits(reader.u32()?)),
            3 => {
                let high = u128::from(reader.u64()?) << 64;
                IpAddr::V6(Ipv6Addr::from_bits(high | u128::from(reader.u64()?)))
            }
            _ => return Err(reader.error()),
        };
        let prefix = reader.u8()?;
        let subnet = Subnet::new(address, prefix).ok_or_else(|| reader.error())?;
        Ok(BanTarget::Network(subnet))
    }
}

impl KeyRole {
    pub(crate) fn code(self) -> u8 {
        match self {
            KeyRole::Read => 0,
            KeyRole::Operate => 1,
            KeyRole::Admin => 2,
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<KeyRole, DecodeError> {
        match reader.u8()? {
            0 => Ok(KeyRole::Read),
            1 => Ok(KeyRole::Operate),
            2 => Ok(KeyRole::Admin),
            _ => Err(reader.error()),
        }
    }
}

pub(crate) fn read_hidden(reader: &mut Reader<'_>) -> Result<Hidden, DecodeError> {
    Ok(Hidden::new(reader.bytes()?.to_vec()))
}

fn write_authority(writer: &mut Writer, authority: &Option<Box<str>>) {
    writer.option(authority.as_deref(), |w, authority| {
        w.str(authority);
    });
}

fn read_authority(reader: &mut Reader<'_>) -> Result<Option<Box<str>>, DecodeError> {
    reader.option(|r| r.str().map(Into::into))
}

#[cfg(test)]
mod tests;
