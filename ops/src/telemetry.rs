//! Logs: one line per event on standard error, as text for people or JSON for machines.
//!
//! A panic is logged as an error too, with its place, before it unwinds.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Why a level is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{level}` is not a log level: write error, warn, info, debug or trace, or parts like info,lontra_cluster=debug"
)]
pub struct LevelError {
    level: String,
    source: Option<tracing_subscriber::filter::ParseError>,
}

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(transparent)]
    Level(#[from] LevelError),
    #[error("the log level cannot be changed any more")]
    Ended(#[from] tracing_subscriber::reload::Error),
    #[error("this process logs already")]
    AlreadyStarted,
}

/// Changes what a running process logs.
pub struct LevelHandle(Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>);

impl LevelHandle {
    /// From now on `level` holds, everywhere.
    ///
    /// # Errors
    /// `level` is none, or logging has ended; what held before still does.
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        Ok((self.0)(filter(level)?)?)
    }
}

/// Starts logging to standard error, for the rest of the process's life.
///
/// # Errors
/// `level` is none, or logging was started before.
pub fn start(level: &str, format: Format) -> Result<LevelHandle, TelemetryError> {
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let (subscriber, handle) = subscriber(filter(level)?, format, colours, std::io::stderr);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::AlreadyStarted)?;
    log_panics();
    Ok(handle)
}

/// Whether [`start`] would take `level`.
///
/// # Errors
/// It would not.
pub fn check_level(level: &str) -> Result<(), LevelError> {
    filter(level).map(|_| ())
}

/// A bare word that is no level would be taken for the name of a part, and silence all others.
fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    let refused = |source| LevelError {
        level: level.to_owned(),
        source,
    };
    let is_level = |word: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&word);
    if level
        .split(',')
        .any(|directive| !directive.contains('=') && !is_level(directive.trim()))
    {
        return Err(refused(None));
    }
    // openraft tells every vote at info and every attempt to reach a peer that is down at warn, for each group; the
    // links tell the latter once. Whoever wants it says `openraft=info`.
    // What administrators did is told at every level: whoever does not want it says `audit=off`.
    EnvFilter::try_new(format!("openraft=error,audit=info,{level}")).map_err(|source| refused(Some(source)))
}

fn subscriber<W>(
    filter: EnvFilter,
    format: Format,
    colours: bool,
    writer: W,
) -> (Box<dyn tracing::Subscriber + Send + Sync>, LevelHandle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Internal errors would be printed with `eprintln!`, which panics when standard error is a file on a full disk.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .log_internal_errors(false);
    match format {
        Format::Text => {
            let builder = builder.with_ansi(colours).with_filter_reloading();
            let handle = builder.reload_handle();
            let set = LevelHandle(Box::new(move |filter| handle.reload(filter)));
            (Box::new(builder.finish()), set)
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let set = LevelHandle(Box::new(move |filter| handle.reload(filter)));
            (Box::new(builder.finish()), set)
        }
    }
}

fn log_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(
            place,
            thread,
            message = panic.payload_as_str().unwrap_or("no message"),
            "a thread panicked"
        );
        print(panic);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: Format) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, _) = subscriber(filter(level).unwrap(), format, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(node = 3, "serving");
            tracing::debug!("detail");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_lines_hold_message_and_fields_from_the_level_on() {
        let text = logged("info", Format::Text);
        assert!(text.contains("INFO") && text.contains("serving node=3"), "{text}");
        assert!(!text.contains("detail"), "{text}");
        assert!(logged("warn,lontra_ops=debug", Format::Text).contains("detail"));
    }

    #[test]
    fn another_level_holds_at_once_and_a_wrong_one_changes_nothing() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, level) = subscriber(filter("info").unwrap(), Format::Json, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("first");
            level.set("debug").unwrap();
            tracing::debug!("second");
            assert!(level.set("loud").is_err());
            tracing::debug!("third");
            level.set("warn").unwrap();
            tracing::info!("fourth");
        });
        let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let seen = ["first", "second", "third", "fourth"].map(|word| logged.contains(word));
        assert_eq!(seen, [false, true, true, false], "{logged}");
    }

    #[test]
    fn json_lines_are_objects() {
        let line: serde_json::Value = serde_json::from_str(logged("info", Format::Json).trim()).unwrap();
        assert_eq!(
            (&line["message"], &line["node"], &line["level"]),
            (&"serving".into(), &3.into(), &"INFO".into())
        );
    }

    #[test]
    fn a_log_that_cannot_be_written_harms_nobody() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
        }
        let (subscriber, _) = subscriber(filter("info").unwrap(), Format::Text, false, || Full);
        tracing::subscriber::with_default(subscriber, || tracing::error!("not written"));
    }

    #[test]
    fn words_that_are_no_level_are_refused() {
        for level in ["", "loud", "info,loud", "lontra=loud"] {
            assert!(
                check_level(level)
                    .unwrap_err()
                    .to_string()
                    .contains("error, warn, info"),
                "{level}"
            );
        }
        assert!(check_level("info,lontra_cluster=trace").is_ok());
    }
}
