//! The bounds of `[auth]`. Files are looked at when they are read.

use std::time::Duration;

use super::{Checked, range, refuse, time};
use crate::auth::http_client::address;
use crate::config::auth::Auth;

pub(super) fn check(auth: &Auth) -> Checked {
    let (jwt, http) = (&auth.jwt, &auth.http);
    url("auth.jwt.jwks_url", &jwt.jwks_url)?;
    let day = Duration::from_secs(24 * 3600);
    time("auth.jwt.jwks_refresh", jwt.jwks_refresh, Duration::from_secs(10), day)?;
    time("auth.jwt.leeway", jwt.leeway, Duration::ZERO, Duration::from_secs(300))?;
    if jwt.user_claim.is_empty() {
        let problem = "may not be empty: name the claim that is the user name, like \"sub\"";
        return refuse("auth.jwt.user_claim", problem.to_owned());
    }
    url("auth.http.url", &http.url)?;
    let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(30));
    time("auth.http.timeout", http.timeout, shortest, longest)?;
    range("auth.http.requests_max", http.requests_max, 1, 1000)
}

fn url(key: &'static str, url: &str) -> Checked {
    if url.is_empty() {
        return Ok(());
    }
    address(url).map_or_else(|problem| refuse(key, problem.to_string()), |_| Ok(()))
}
