//! A domain of a route: one name, or every name below one.
//!
//! No other pattern: `*` alone would make an open relay, and a star elsewhere is not what the DNS means by one.

use restante_envelope::{DomainName, PathError};
use std::fmt;

/// What a route takes mail for.
///
/// `Display` writes it as it is configured: `example.com`, `*.example.com`. What it writes parses back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainPattern {
    /// This domain, and none below it.
    Exact(DomainName),
    /// Every domain below this one, at any depth; not this one itself.
    Below(DomainName),
}

/// Why a text is no domain of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `*`
    #[error("a star alone would take mail for everybody")]
    Everybody,
    /// `*.com`
    #[error("a star in front of a single label would take a whole top-level domain")]
    TopLevel,
    /// Not a domain name (RFC 5321 section 2.3.5), behind the star if there is one.
    #[error(transparent)]
    Name(#[from] PathError),
}

impl DomainPattern {
    /// Reads `example.com` or `*.example.com`.
    ///
    /// A public suffix of several labels (`*.co.uk`) is not known here, and taken.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        match text.strip_prefix("*.") {
            _ if text == "*" => Err(PatternError::Everybody),
            None => Ok(Self::Exact(DomainName::parse(text)?)),
            Some(above) => match DomainName::parse(above)? {
                name if !name.as_str().contains('.') => Err(PatternError::TopLevel),
                name => Ok(Self::Below(name)),
            },
        }
    }

    /// The domain itself, or the one above all that are meant.
    pub fn name(&self) -> &DomainName {
        match self {
            Self::Exact(name) | Self::Below(name) => name,
        }
    }

    /// Whether it means the domain `name`, which is in lower case.
    pub fn takes(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == name,
            Self::Below(above) => name.strip_suffix(above.as_str()).is_some_and(|below| below.ends_with('.')),
        }
    }
}

impl From<DomainName> for DomainPattern {
    fn from(name: DomainName) -> Self {
        Self::Exact(name)
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_would_take_strangers_is_refused() {
        for (text, error) in [
            ("*", PatternError::Everybody),
            ("*.com", PatternError::TopLevel),
            ("*.*.com", PatternError::Name(PathError::Domain)),
            ("*.", PatternError::Name(PathError::Domain)),
            ("a.*.com", PatternError::Name(PathError::Domain)),
            ("*example.com", PatternError::Name(PathError::Domain)),
            (".example.com", PatternError::Name(PathError::Domain)),
        ] {
            assert_eq!(DomainPattern::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_wildcard_means_what_is_below_it_and_nothing_that_only_ends_alike() {
        let wildcard = DomainPattern::parse("*.Example.COM").unwrap();
        assert_eq!((wildcard.to_string().as_str(), wildcard.name().as_str()), ("*.example.com", "example.com"));
        assert!(wildcard.takes("a.example.com") && wildcard.takes("a.b.example.com"));
        for other in ["example.com", "aexample.com", "example.com.org", "com"] {
            assert!(!wildcard.takes(other), "{other}");
        }
        let exact = DomainPattern::parse("example.com").unwrap();
        assert!(exact.takes("example.com") && !exact.takes("a.example.com"));
    }
}
