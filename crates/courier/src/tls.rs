//! The TLS handshake of a client that would rather be encrypted than not (RFC 7435). Trusts no certificate and checks
//! none: who can stand between us and the server could as well suppress STARTTLS. Logs nothing, keys least of all.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, CommonState, DigitallySignedStruct, ProtocolVersion, SignatureScheme};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// One for the process: it holds the tickets by which the next connection to a server resumes the session.
static CLIENT_CONFIG: LazyLock<Result<Arc<ClientConfig>, rustls::Error>> = LazyLock::new(|| {
    // Named, not the process default: that depends on what other crates of the build enable.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let any = Arc::new(AnyCertificate(provider.clone()));
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(versions.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()))
});

/// Encrypts a connection to `host` at `ip`. The caller bounds the wait.
pub(crate) async fn handshake(tcp: TcpStream, host: &str, ip: IpAddr) -> io::Result<TlsStream<TcpStream>> {
    let config = CLIENT_CONFIG.clone().map_err(io::Error::other)?;
    // A host name is told to the server (RFC 6066 section 3), an address is not; nor is a name that is none in DNS.
    let name = ServerName::try_from(host.to_owned()).unwrap_or_else(|_| ServerName::from(ip));
    TlsConnector::from(config).connect(name, tcp).await
}

/// What a handshake agreed on, of either side. Shown as IANA names it: `TLSv1.3 TLS_AES_256_GCM_SHA384`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// As in the registry of TLS cipher suites.
    pub cipher_suite: String,
}

impl Agreed {
    /// Of a session whose handshake is over.
    pub fn of(session: &CommonState) -> Self {
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            // rustls speaks no other.
            _ => "TLS",
        };
        let suite = session.negotiated_cipher_suite().and_then(|agreed| agreed.suite().as_str()).unwrap_or("unknown");
        let cipher_suite = match suite.strip_prefix("TLS13_") {
            // rustls marks those of version 1.3; RFC 8446 does not.
            Some(rest) => format!("TLS_{rest}"),
            None => suite.to_owned(),
        };
        Self { version, cipher_suite }
    }
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, self.cipher_suite)
    }
}

/// Takes every certificate, even one that cannot be read: to fail here would only send the mail in clear.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
