//! What nodes say of themselves and of the cluster, asked over their operator ports: leaders, owners, digests, counters.
//! A fault never cuts these ports off; a node that is paused or down just does not answer.

use super::Cluster;
use super::failure::Failure;
use super::http;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;

impl Cluster {
    /// The leader of each group with its term, of the claims of all nodes that answer the one in the newest term.
    pub async fn leaders(&self) -> BTreeMap<String, (String, u64)> {
        let mut newest: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (_, answer) in self.ask_all("/api/v1/groups".to_owned(), ASK).await {
            for group in answer["groups"].as_array().into_iter().flatten() {
                let claim = (group["term"].as_u64(), group["leader"].as_u64());
                if let (Some(name), (Some(term), Some(leader))) = (group["group"].as_str(), claim) {
                    let known = newest.entry(name.to_owned()).or_default();
                    *known = (*known).max((term, leader));
                }
            }
        }
        newest
            .into_iter()
            .map(|(group, (term, leader))| (group, (format!("n{leader}"), term)))
            .collect()
    }

    /// The node that a client's session is connected to, as the node with the newest epoch of it knows.
    pub async fn session_owner(&self, client: &str) -> Option<String> {
        let answers = self.ask_all(format!("/api/v1/sessions/{client}"), ASK).await;
        let newest = answers
            .into_iter()
            .max_by_key(|(_, answer)| answer["epoch"].as_u64())?
            .1;
        Some(format!("n{}", newest["owner"].as_u64()?))
    }

    /// The node of every connected session, as one node that answers knows it; for choosing victims.
    pub async fn owners(&self) -> Vec<String> {
        let answers = self.ask_all("/api/v1/status".to_owned(), ASK).await;
        let sessions = answers.values().filter_map(|status| status["sessions"].as_array());
        let most = sessions.max_by_key(|sessions| sessions.len());
        let owners = most.into_iter().flatten();
        owners
            .filter_map(|session| Some(format!("n{}", session["node"].as_u64()?)))
            .collect()
    }

    /// Of each group, by node: the digest of its rows and the index that they show.
    pub async fn digests(&self) -> Value {
        let mut by_group: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        for (name, groups) in self.ask_all("/api/v1/groups".to_owned(), ASK).await {
            for group in groups["groups"].as_array().into_iter().flatten() {
                let Some(group) = group["group"].as_str() else { continue };
                let path = format!("/api/v1/groups/{group}/digest");
                let answer = match self.ask(&name, &path, ASK_ROWS).await {
                    Ok(answer) => json!({ "applied": answer["applied"], "digest": answer["digest"] }),
                    Err(failure) => json!({ "error": failure.to_string() }),
                };
                by_group
                    .entry(group.to_owned())
                    .or_default()
                    .insert(name.clone(), answer);
            }
        }
        json!(by_group)
    }

    /// Every node's metrics by name and labels, but for histograms' buckets and what is of the process, not of the broker.
    pub async fn counters(&self) -> Value {
        let mut by_node = Map::new();
        for name in self.names() {
            let answer = http::get(self.http(name), "/metrics", ASK_ROWS).await;
            if let Ok((200, text)) = answer {
                by_node.insert(name.clone(), metrics(&text));
            }
        }
        Value::Object(by_node)
    }

    /// Hands the leadership of `group` to node `to`.
    ///
    /// # Errors
    /// `Refused`: no node did it; leadership may have moved all the same.
    pub async fn transfer_leader(&self, group: &str, to: &str) -> Result<(), Failure> {
        let id = self.node(to)?.layout.id;
        let path = format!("/api/v1/groups/{group}/leader");
        self.post(to, &path, &json!({ "to": id }).to_string()).await.map(drop)
    }

    /// Makes the tables of `node` durable and purges the log of `group` there.
    ///
    /// # Errors
    /// `Refused`.
    pub async fn force_snapshot(&self, node: &str, group: &str) -> Result<Value, Failure> {
        self.post(node, &format!("/api/v1/groups/{group}/snapshot"), "").await
    }

    async fn post(&self, node: &str, path: &str, body: &str) -> Result<Value, Failure> {
        let refused = |detail: String| Failure::Refused {
            what: format!("POST {path} to {node}"),
            detail,
        };
        let (code, answer) = http::post(self.http(node), path, body, ASK_ROWS)
            .await
            .map_err(|error| refused(error.to_string()))?;
        match code {
            200 => Ok(serde_json::from_str(&answer).unwrap_or(Value::Null)),
            _ => Err(refused(format!("{code}: {answer}"))),
        }
    }

    /// `GET path` of one node.
    ///
    /// # Errors
    /// `Refused`: no answer, or another one than 200 with JSON.
    pub async fn ask(&self, node: &str, path: &str, limit: Duration) -> Result<Value, Failure> {
        ask(self.http(node), path, limit)
            .await
            .map_err(|detail| Failure::Refused {
                what: format!("GET {path} of {node}"),
                detail,
            })
    }

    /// All nodes at once; those that do not answer are left out.
    async fn ask_all(&self, path: String, limit: Duration) -> BTreeMap<String, Value> {
        let mut asked = JoinSet::new();
        for name in self.names().iter().filter(|name| self.answers(name)).cloned() {
            let (address, path) = (self.http(&name), path.clone());
            asked.spawn(async move { (name, ask(address, &path, limit).await) });
        }
        let answers = asked.join_all().await;
        answers
            .into_iter()
            .filter_map(|(name, answer)| Some((name, answer.ok()?)))
            .collect()
    }
}

async fn ask(address: SocketAddr, path: &str, limit: Duration) -> Result<Value, String> {
    match http::get(address, path, limit).await {
        Ok((200, body)) => serde_json::from_str(&body).map_err(|error| error.to_string()),
        Ok((code, body)) => Err(format!("{code}: {body}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Prometheus's text as a map.
fn metrics(text: &str) -> Value {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let kept = !name.contains("_bucket") && !name.starts_with("lontra_process_");
        kept.then_some((name.to_owned(), json!(value.parse::<f64>().ok()?)))
    });
    Value::Object(pairs.collect())
}

/// From memory: a node that needs longer stands still.
const ASK: Duration = Duration::from_secs(1);
/// Reads every row, or waits for others.
const ASK_ROWS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_name_and_labels() {
        let text = "# HELP a b\nlontra_x_total{shard=\"1\"} 7\nlontra_y_bucket{le=\"1\"} 3\nlontra_process_fds 9\n";
        assert_eq!(metrics(text), json!({ "lontra_x_total{shard=\"1\"}": 7.0 }));
    }
}
