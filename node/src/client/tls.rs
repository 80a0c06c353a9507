//! TLS from the client's side: what a command line says of it, and rustls over any stream of bytes.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is trusted, and who we are.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Authorities; those of the system if there is none.
    pub cafile: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The server's certificate may be for any name.
    pub insecure: bool,
    pub alpn: Option<&'static [u8]>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsOptionsError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} holds no PEM {what}", path.display())]
    NotPem { path: PathBuf, what: &'static str },
    #[error("this system has no file of authorities where others have one: name one with --cafile")]
    NoAuthorities,
    #[error("{} cannot be used for TLS: {source}", path.display())]
    Unusable { path: PathBuf, source: Error },
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] Error),
}

impl TlsOptions {
    /// # Errors
    /// A file is missing, or not what it should be.
    pub fn config(&self) -> Result<Arc<ClientConfig>, TlsOptionsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match self.insecure {
            false => builder.with_webpki_verifier(verifier),
            true => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyName(verifier))),
        };
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let pem = read(key)?;
                let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsOptionsError::NotPem {
                    path: key.clone(),
                    what: "private key",
                })?;
                let unusable = |source| TlsOptionsError::Unusable {
                    path: key.clone(),
                    source,
                };
                builder.with_client_auth_cert(chain, private).map_err(unusable)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols.extend(self.alpn.map(<[u8]>::to_vec));
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TlsOptionsError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.cafile {
            for certificate in certificates(path)? {
                let unusable = |source| TlsOptionsError::Unusable {
                    path: path.clone(),
                    source,
                };
                roots.add(certificate).map_err(unusable)?;
            }
            return Ok(roots);
        }
        let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let system = named.into_iter().chain(SYSTEM_AUTHORITIES.iter().map(PathBuf::from));
        let Some(path) = system.into_iter().find(|path| path.exists()) else {
            return Err(TlsOptionsError::NoAuthorities);
        };
        roots.add_parsable_certificates(certificates(&path)?);
        Ok(roots)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsOptionsError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| TlsOptionsError::NotPem {
        path: path.to_owned(),
        what: "certificate",
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsOptionsError> {
    fs::read(path).map_err(|source| TlsOptionsError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// `--insecure`, as mosquitto has it: the certificate must be good, but may be for another name.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// TLS over a stream of bytes.
pub struct TlsStream<S> {
    io: S,
    connection: ClientConnection,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Shakes hands.
    ///
    /// # Errors
    /// The server is not trusted, does not trust us, or speaks no TLS.
    pub async fn connect(io: S, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Self> {
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut stream = TlsStream { io, connection };
        std::future::poll_fn(|context| stream.poll_handshake(context)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(context))?;
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_receive(context))? == 0 {
                let problem = "the server closed the connection within the TLS handshake";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem)));
            }
        }
    }

    /// Writes records that wait.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            let io = &mut self.io;
            match self.connection.write_tls(&mut Adapter { io, context }) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Pin::new(&mut self.io).poll_flush(context)
    }

    /// Takes records; 0: nothing more comes.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = &mut self.io;
        let read = match self.connection.read_tls(&mut Adapter { io, context }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            read => read?,
        };
        if let Err(error) = self.connection.process_new_packets() {
            // The server learns why, if its socket takes it now.
            let _ = self.poll_send(context);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(read))
    }
}

/// A polled stream as rustls reads and writes it.
struct Adapter<'a, 'c, S> {
    io: &'a mut S,
    context: &'a mut Context<'c>,
}

impl<S: AsyncRead + Unpin> Read for Adapter<'_, '_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.io).poll_read(self.context, &mut buffer) {
            Poll::Ready(read) => read.map(|()| buffer.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: AsyncWrite + Unpin> Write for Adapter<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.io).poll_write(self.context, bytes) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Of what was written before: nobody may come back to flush it.
        if let Poll::Ready(Err(error)) = this.poll_send(context) {
            return Poll::Ready(Err(error));
        }
        loop {
            match this.connection.reader().read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // MQTT has its own end: one without the alert is one too.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(this.poll_receive(context))?;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        let written = this.connection.writer().write(bytes)?;
        match this.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(written)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.connection.send_close_notify();
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}

/// Debian, Red Hat, SUSE, Alpine and BSD.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
