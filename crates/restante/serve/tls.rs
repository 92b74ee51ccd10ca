//! Our certificate for STARTTLS: the configured one or a self-signed one, replaced while sessions run.
//!
//! Does no handshake (`socket.rs` does), and judges neither names nor dates: a sender decides whether it likes what it
//! sees, and most take anything (RFC 7435).

use crate::config::{CertificateFiles, Fingerprint};
use anyhow::{Context as _, anyhow, bail};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ServerConfig};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

/// The self-signed certificate and its key, in the data directory.
const SELF_SIGNED: &str = "tls-self-signed.pem";
/// The same while it is written: never a half under its own name.
const SELF_SIGNED_NEW: &str = "tls-self-signed.pem.new";
/// How often the files are looked at. Two looks must agree before they are read, so that a chain whose key is still on
/// its way costs no warning; a new certificate is served within two of these.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A long chain is 20 KiB. What is larger than this is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// X.520: the longest common name. A longer host name stands in the alternative name alone, where clients look.
const COMMON_NAME_BYTES_MAX: usize = 64;

/// What the daemon shows of itself to clients that say STARTTLS.
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    watched: Mutex<Watched>,
    self_signed: SelfSigned,
}

/// The certificate of the next handshake. A lock, not a channel: rustls asks from within the handshake.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Current {
    /// Whether it is another one than before.
    fn replace(&self, key: CertifiedKey) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, Arc::new(key));
        before.cert != current.cert
    }
}

/// Where the current certificate came from, and what is known of the files there.
struct Watched {
    files: CertificateFiles,
    /// When they were last read with success.
    loaded: Looks,
    /// At the last look.
    seen: Looks,
    /// What was said of them since.
    warned: Option<String>,
}

/// What chain and key look like; none for a file that is not there.
type Looks = [Option<Fingerprint>; 2];

fn looks(files: &CertificateFiles) -> Looks {
    [Fingerprint::of(&files.chain), Fingerprint::of(&files.key)]
}

impl Tls {
    /// Takes the configured certificate, or else the self-signed one, which is made if need be.
    pub(crate) fn new(
        configured: Option<&CertificateFiles>,
        data_dir: &Path,
        hostname: &str,
    ) -> anyhow::Result<Arc<Self>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let self_signed = SelfSigned { data_dir: data_dir.to_owned(), hostname: hostname.to_owned() };
        let (watched, key) = take(configured, &self_signed, &provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(key))));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        // Tickets that clients keep for us, under a key that changes every six hours: resuming costs us no memory.
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(Self { config: Arc::new(config), current, watched: Mutex::new(watched), self_signed }))
    }

    /// For one handshake.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// Serves the certificate of these files from the next handshake on, or the self-signed one, and says which if it
    /// is another one or from elsewhere. On an error, which names the file, all stays as it was.
    pub(crate) fn reload(&self, configured: Option<&CertificateFiles>) -> anyhow::Result<Option<String>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, key) = take(configured, &self.self_signed, self.config.crypto_provider())?;
        let is_other = self.current.replace(key) || next.files != watched.files;
        *watched = next;
        Ok(is_other.then(|| format!("certificate: now from {}", watched.files.chain.display())))
    }

    /// Looks at the files now and then, and serves what has become of them. Never ends.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let tls = self.clone();
            // Not on the runtime's threads: the files may be on a disk that hangs.
            let _panicked = tokio::task::spawn_blocking(move || tls.look()).await;
        }
    }

    /// Replaces the certificate if its files have changed, stand still, and belong together; else says once why not.
    fn look(&self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let now = looks(&watched.files);
        let stands_still = std::mem::replace(&mut watched.seen, now) == now;
        if now == watched.loaded || !stands_still {
            return;
        }
        let path = watched.files.chain.display().to_string();
        match load(&watched.files, self.config.crypto_provider()) {
            Ok(key) => {
                self.current.replace(key);
                (watched.loaded, watched.warned) = (now, None);
                tracing::info!("new certificate from {path}");
            }
            Err(error) => {
                let why = format!("{error:#}");
                if watched.warned.as_ref() != Some(&why) {
                    tracing::warn!("the certificate has changed and cannot be used; the one before stays: {why}");
                    watched.warned = Some(why);
                }
            }
        }
    }
}

/// Finds the certificate that is to be served.
fn take(
    configured: Option<&CertificateFiles>,
    self_signed: &SelfSigned,
    provider: &CryptoProvider,
) -> anyhow::Result<(Watched, CertifiedKey)> {
    let Some(files) = configured.cloned() else {
        let key = self_signed.load_or_make(provider)?;
        let files = self_signed.files();
        let loaded = looks(&files);
        return Ok((Watched { files, loaded, seen: loaded, warned: None }, key));
    };
    // Before it is read: what changes meanwhile is seen at the next look.
    let loaded = looks(&files);
    let key = load(&files, provider)?;
    Ok((Watched { files, loaded, seen: loaded, warned: None }, key))
}

/// Whether `serve` could show the certificate of these files: read as it would read them, and put to no use.
///
/// # Errors
/// As a start or a reload would refuse them: the file at fault, and why.
pub(crate) fn check(files: &CertificateFiles) -> anyhow::Result<()> {
    load(files, &aws_lc_rs::default_provider()).map(drop)
}

/// Reads chain and key. Each error names the file at fault.
fn load(files: &CertificateFiles, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let (chain_path, key_path) = (files.chain.display(), files.key.display());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(&files.chain)?)
        .collect::<Result<_, _>>()
        .map_err(|error| anyhow!("{chain_path}: malformed PEM: {}", pem_in_words(&error)))?;
    if chain.is_empty() {
        bail!("{chain_path}: no certificate in it; it must begin with -----BEGIN CERTIFICATE-----");
    }
    let key = read(&files.key)?;
    if has_passphrase(&key) {
        bail!(
            "{key_path}: the key has a passphrase, and nobody is there to type it: `openssl pkey` writes one without"
        );
    }
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| match error {
        pem::Error::NoItemsFound => anyhow!("{key_path}: no private key in it"),
        other => anyhow!("{key_path}: malformed PEM: {}", pem_in_words(&other)),
    })?;
    let key = provider.key_provider.load_private_key(key).with_context(|| format!("{key_path}: unusable key"))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            bail!("{key_path}: not the key of the first certificate in {chain_path}, which must be our own")
        }
        // The type that says so is of a library below rustls, and has no other name up here.
        Err(error) if format!("{error:?}").contains("UnsupportedCertVersion") => {
            bail!("{chain_path}: unusable certificate: only X.509 version 3 works, and this is an older one")
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::BadEncoding)) => {
            bail!("{chain_path}: unusable certificate: it is cut short or garbled")
        }
        Err(error) => bail!("{chain_path}: unusable certificate: {error}"),
    }
}

/// PKCS #8 says so in its label; the older form (RFC 1421) in a header.
fn has_passphrase(pem: &[u8]) -> bool {
    let mut lines = pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.any(|line| {
        line == b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED")
    })
}

/// Without the bytes it stumbled over: they may be a key's.
fn pem_in_words(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } | pem::Error::IllegalSectionStart { .. } | pem::Error::Base64Decode(_) => {
            "it is cut short or garbled".to_owned()
        }
        other => other.to_string(),
    }
}

/// A file's bytes, if it is one and of reasonable size.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut read = || -> io::Result<()> {
        // Asked before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(())
    };
    read().with_context(|| path.display().to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{}: larger than 1 MiB, which no certificate is", path.display());
    }
    Ok(bytes)
}

/// The certificate of those who have none.
struct SelfSigned {
    data_dir: PathBuf,
    hostname: String,
}

impl SelfSigned {
    fn files(&self) -> CertificateFiles {
        let path = self.data_dir.join(SELF_SIGNED);
        CertificateFiles { chain: path.clone(), key: path }
    }

    /// The one there is, so that whoever pinned it (DANE, RFC 7672) finds it again; or a new one.
    fn load_or_make(&self, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
        let files = self.files();
        let path = files.chain.display();
        match load(&files, provider) {
            Ok(key) if self.is_for_us(&key) => return Ok(key),
            Ok(_) => tracing::warn!("{path}: not for {}, a new one is made", self.hostname),
            Err(_) if !files.chain.exists() => {}
            Err(error) => tracing::warn!("a new self-signed certificate is made, for: {error:#}"),
        }
        let (pem, key) = self.make(provider)?;
        // Without it mail would still be served: on a full disk, at the next start, under another key.
        if let Err(error) = self.keep(&pem) {
            tracing::warn!("cannot keep the self-signed certificate as {path}: {error}");
        }
        Ok(key)
    }

    fn is_for_us(&self, key: &CertifiedKey) -> bool {
        let Ok(certificate) = key.end_entity_cert().and_then(ParsedCertificate::try_from) else { return false };
        ServerName::try_from(self.hostname.as_str()).is_ok_and(|us| verify_server_name(&certificate, &us).is_ok())
    }

    /// A P-256 key and a certificate without a chain, valid from 1975 to 4096: at a first start the clock may be wrong,
    /// and nobody is there to renew it.
    fn make(&self, provider: &CryptoProvider) -> anyhow::Result<(String, CertifiedKey)> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new([self.hostname.clone()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if self.hostname.len() <= COMMON_NAME_BYTES_MAX {
            params.distinguished_name.push(rcgen::DnType::CommonName, self.hostname.as_str());
        }
        let certificate = params.self_signed(&key)?;
        let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| anyhow!(why))?;
        Ok((pem, CertifiedKey::from_der(vec![certificate.der().clone()], key, provider)?))
    }

    fn keep(&self, pem: &str) -> io::Result<()> {
        let new = self.data_dir.join(SELF_SIGNED_NEW);
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, self.files().chain)?;
        File::open(&self.data_dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests;
