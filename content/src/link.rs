//! Links, what people paste: `shoal:<CID>[/path]?name=…&size=…&via=…`, with percent-encoding as in RFC 3986. Only text
//! becomes a value here; addresses are not looked into.

use std::{borrow::Cow, fmt, str::FromStr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    Cid, CidError, MAX_LINK_ADDR_BYTES, MAX_LINK_ADDRS, MAX_LINK_TEXT_BYTES, PathError, RelPath, path::check_name,
};

/// What stays as it is: RFC 3986's unreserved characters and those of its reserved ones that neither end a part of the
/// link nor mean anything to a shell. `&` has to be quoted in a shell anyway.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@')
    .remove(b',');

/// A pointer to content, with hints that make finding it quicker. Only `root` and `path` say what is meant.
///
/// Parses `shoal:<CID>[/path][?…]` and, since people paste them, `shoal://<CID>`, `ipfs://<CID>`, `/ipfs/<CID>` and a bare
/// CID, each with a path and hints if there are any, and with white space around it. Prints the first form, parts in one
/// order: a link that was parsed prints the same text as any other link that means the same.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ShoalLink {
    /// The root.
    pub root: Cid,
    /// A path inside the root; `None` for all of it.
    pub path: Option<RelPath>,
    /// The name the sharer gave it: one safe part of a path.
    pub name: Option<String>,
    /// Bytes of content, as the sharer says.
    pub size: Option<u64>,
    /// Multiaddrs (text, with `/p2p/<peer>`) of peers that have it.
    pub via: Vec<String>,
}

impl ShoalLink {
    /// A link to all of `root`, without hints.
    pub fn new(root: Cid) -> Self {
        Self { root, path: None, name: None, size: None, via: Vec::new() }
    }

    fn add_hint(&mut self, key: &str, value: &str) -> Result<(), LinkError> {
        match key {
            "name" => {
                let name = decode("name", value)?.into_owned();
                check_name(name.as_bytes()).map_err(LinkError::Name)?;
                set("name", &mut self.name, name)
            }
            "size" => {
                // `u64::from_str` would take a leading plus.
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let size = value.parse().ok().filter(|_| digits).ok_or_else(|| LinkError::Size(quote(value)))?;
                set("size", &mut self.size, size)
            }
            "via" => {
                let addr = decode("via", value)?;
                if self.via.len() == MAX_LINK_ADDRS {
                    return Err(LinkError::TooManyAddrs);
                }
                let plain = addr.bytes().all(|byte| byte.is_ascii_graphic());
                if !addr.starts_with('/') || !plain || addr.len() > MAX_LINK_ADDR_BYTES {
                    return Err(LinkError::Addr(quote(&addr)));
                }
                self.via.push(addr.into_owned());
                Ok(())
            }
            // A newer version's hint. Hints may be ignored.
            _ => Ok(()),
        }
    }
}

impl FromStr for ShoalLink {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(LinkError::Empty);
        }
        if text.len() > MAX_LINK_TEXT_BYTES {
            return Err(LinkError::TooLong(text.len()));
        }
        let body = strip_scheme(text)?;
        let (place, hints) = body.split_once('?').unwrap_or((body, ""));
        let (cid, path) = place.split_once('/').unwrap_or((place, ""));
        let mut link = Self::new(cid.parse().map_err(|source| LinkError::Cid { text: quote(cid), source })?);
        let path: RelPath = decode("path", path)?.parse().map_err(LinkError::Path)?;
        link.path = (!path.is_root()).then_some(path);
        for hint in hints.split('&').filter(|hint| !hint.is_empty()) {
            let (key, value) = hint.split_once('=').unwrap_or((hint, ""));
            link.add_hint(key, value)?;
        }
        Ok(link)
    }
}

impl fmt::Display for ShoalLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shoal:{}", self.root)?;
        if let Some(path) = self.path.as_ref().filter(|path| !path.is_root()) {
            write!(f, "/{}", utf8_percent_encode(path.as_str(), ESCAPED))?;
        }
        let mut separator = '?';
        let mut hint = |key: &str, value: &dyn fmt::Display| {
            let separator = std::mem::replace(&mut separator, '&');
            write!(f, "{separator}{key}={value}")
        };
        if let Some(name) = &self.name {
            hint("name", &utf8_percent_encode(name, ESCAPED))?;
        }
        if let Some(size) = &self.size {
            hint("size", size)?;
        }
        self.via.iter().try_for_each(|addr| hint("via", &utf8_percent_encode(addr, ESCAPED)))
    }
}

/// What follows the scheme. Schemes have no case.
fn strip_scheme(text: &str) -> Result<&str, LinkError> {
    for scheme in ["shoal://", "shoal:", "ipfs://", "/ipfs/"] {
        if let Some((head, body)) = text.split_at_checked(scheme.len())
            && head.eq_ignore_ascii_case(scheme)
        {
            return Ok(body);
        }
    }
    // No CID has a colon in it; a path or hint may.
    match text.split_once(':') {
        Some((scheme, _)) if !scheme.contains(['/', '?']) => Err(LinkError::Scheme(quote(scheme))),
        _ => Ok(text),
    }
}

fn decode<'a>(part: &'static str, text: &'a str) -> Result<Cow<'a, str>, LinkError> {
    let stray = text
        .split('%')
        .skip(1)
        .any(|after| !after.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)));
    if stray {
        return Err(LinkError::Percent { part, text: quote(text) });
    }
    percent_decode_str(text).decode_utf8().map_err(|_| LinkError::NotUtf8 { part, text: quote(text) })
}

fn set<T>(part: &'static str, slot: &mut Option<T>, value: T) -> Result<(), LinkError> {
    match slot.replace(value) {
        Some(_) => Err(LinkError::Twice(part)),
        None => Ok(()),
    }
}

/// A part of a link for an error: printable and short.
fn quote(text: &str) -> Box<str> {
    const SHOWN: usize = 80;
    let shown = &text[..text.floor_char_boundary(SHOWN)];
    let dots = if shown.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", crate::printable(shown)).into()
}

/// Which part of a link is wrong. The texts in it are printable as they are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Nothing.
    #[error("the link is empty")]
    Empty,
    /// Longer than [`MAX_LINK_TEXT_BYTES`].
    #[error("the link has {0} characters; at most 16,384 are possible")]
    TooLong(usize),
    /// Another kind of link.
    #[error(
        "\"{0}:\" is no kind of link that can be fetched; give a shoal: or ipfs:// link or a content identifier (CID)"
    )]
    Scheme(Box<str>),
    /// The content identifier.
    #[error("\"{text}\" in the link is {source}")]
    Cid {
        /// What stands where a CID belongs.
        text: Box<str>,
        /// What is wrong with it.
        source: CidError,
    },
    /// The path after it.
    #[error("the path in the link: {0}")]
    Path(PathError),
    /// The name.
    #[error("the name= in the link: {0}")]
    Name(PathError),
    /// The size.
    #[error("the size= in the link, \"{0}\", is not a number of bytes")]
    Size(Box<str>),
    /// An address.
    #[error("the via= in the link, \"{0}\", is not a multiaddr (such as /ip4/192.0.2.1/udp/4001/quic-v1/p2p/…)")]
    Addr(Box<str>),
    /// More addresses than [`MAX_LINK_ADDRS`].
    #[error("the link has more than 32 via= addresses")]
    TooManyAddrs,
    /// A hint twice that can be there once.
    #[error("the link has {0}= twice")]
    Twice(&'static str),
    /// A `%` that encodes nothing.
    #[error("the {part} in the link, \"{text}\", has a % without two hex digits after it; a real % is written %25")]
    Percent {
        /// Which part.
        part: &'static str,
        /// Its text.
        text: Box<str>,
    },
    /// Percent-encoded bytes that are not UTF-8.
    #[error("the {part} in the link, \"{text}\", is not UTF-8")]
    NotUtf8 {
        /// Which part.
        part: &'static str,
        /// Its text.
        text: Box<str>,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Codec, HashKind};

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    const CID_V0: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";

    fn parse(text: &str) -> ShoalLink {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn whatever_people_paste_is_one_link() {
        let root: Cid = CID.parse().unwrap();
        let bare = ShoalLink::new(root);
        for form in [
            CID.to_string(),
            format!("  {CID}\r\n"),
            format!("shoal:{CID}"),
            format!("shoal://{CID}/"),
            format!("SHOAL:{}", CID.to_uppercase()),
            format!("ipfs://{CID}"),
            format!("/ipfs/{CID}/?"),
            format!("shoal:{CID}?a-later-hint=1&other"),
        ] {
            assert_eq!(parse(&form), bare, "{form}");
        }
        let inside = ShoalLink { path: Some("a b/ü".parse().unwrap()), ..bare };
        for form in [format!("{CID}/a b/ü"), format!("ipfs://{CID}/a%20b/%C3%BC/"), format!("shoal:{CID}/a%20b/%c3%bc")]
        {
            assert_eq!(parse(&form), inside, "{form}");
        }
        assert_eq!(inside.to_string(), format!("shoal:{CID}/a%20b/%C3%BC"));
        assert_eq!(parse(CID_V0).root.codec(), Codec::DagPb);
        assert_eq!(parse(&format!("{CID}/a:b")).path.unwrap().as_str(), "a:b");
    }

    #[test]
    fn hints_come_out_in_one_order() {
        let link = parse(&format!(
            "shoal:{CID}?via=/ip4/192.0.2.1/udp/1/quic-v1/p2p/x&size=12&name=a%26b%3D%25.txt&via=%2Fdns%2Fy"
        ));
        assert_eq!(link.name.as_deref(), Some("a&b=%.txt"));
        assert_eq!(link.size, Some(12));
        assert_eq!(link.via, ["/ip4/192.0.2.1/udp/1/quic-v1/p2p/x", "/dns/y"]);
        let text =
            format!("shoal:{CID}?name=a%26b%3D%25.txt&size=12&via=/ip4/192.0.2.1/udp/1/quic-v1/p2p/x&via=/dns/y");
        assert_eq!(link.to_string(), text);
        assert_eq!(parse(&text), link);
    }

    #[test]
    fn an_error_says_which_part_is_wrong() {
        let via = format!("?{}", vec!["via=/x"; MAX_LINK_ADDRS + 1].join("&"));
        for (text, part) in [
            (String::new(), "empty"),
            ("https://example.org/x".into(), "\"https:\" is no kind"),
            ("C:\\x".into(), "\"C:\""),
            ("shoal:hello".into(), "\"hello\" in the link is not a content identifier"),
            ("shoal:/a".into(), "\"\" in the link is not"),
            (CID[..40].into(), "content identifier"),
            (format!("{CID}/../x"), "path in the link: the name \"..\""),
            (format!("{CID}/%2e%2e/x"), "path in the link: the name \"..\""),
            (format!("{CID}//etc"), "path in the link: \"/etc\" is absolute"),
            (format!("{CID}/100%"), "path in the link, \"100%\", has a %"),
            (format!("{CID}/%ff"), "path in the link, \"%ff\", is not UTF-8"),
            (format!("{CID}?name=..%2Fx"), "name= in the link"),
            (format!("{CID}?name="), "name= in the link"),
            (format!("{CID}?name=a&name=b"), "name= twice"),
            (format!("{CID}?size=+1"), "size= in the link, \"+1\""),
            (format!("{CID}?size="), "size= in the link"),
            (format!("{CID}?size=18446744073709551616"), "size="),
            (format!("{CID}?via=192.0.2.1"), "via= in the link, \"192.0.2.1\""),
            (format!("{CID}?via=/a%0a"), "via= in the link, \"/a\\u{a}\""),
            (format!("{CID}?via=/{}", "a".repeat(MAX_LINK_ADDR_BYTES)), "via="),
            (format!("{CID}{via}"), "more than 32 via="),
            (format!("{CID}?{}", "a".repeat(MAX_LINK_TEXT_BYTES)), "at most 16,384"),
        ] {
            let error = text.parse::<ShoalLink>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
            assert!(error.len() < 400, "{error}");
        }
    }

    fn links() -> impl Strategy<Value = ShoalLink> {
        let name = r"[^/\x00]{1,20}".prop_filter("safe", |name| check_name(name.as_bytes()).is_ok());
        let path =
            prop::collection::vec(name.clone(), 1..4).prop_map(|parts| parts.join("/").parse::<RelPath>().unwrap());
        let root = (any::<[u8; 32]>(), any::<bool>(), any::<bool>()).prop_map(|(digest, raw, blake3)| {
            let codec = if raw { Codec::Raw } else { Codec::DagPb };
            Cid::new(codec, if blake3 { HashKind::Blake3 } else { HashKind::Sha2_256 }, digest)
        });
        let via = prop::collection::vec("/[!-~]{0,60}", 0..4);
        let hints = (prop::option::of(name), prop::option::of(any::<u64>()), via);
        (root, prop::option::of(path), hints).prop_map(|(root, path, (name, size, via))| ShoalLink {
            root,
            path,
            name,
            size,
            via,
        })
    }

    proptest! {
        #[test]
        fn links_round_trip(link in links()) {
            let text = link.to_string();
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{}", text);
            prop_assert_eq!(text.parse::<ShoalLink>().unwrap(), link);
        }

        #[test]
        fn any_text_is_a_link_or_an_error(text in r"(shoal:|/ipfs/)?(\PC{0,60}|bafk[a-z2-7]{0,60}[/?%=&a-z]{0,30})") {
            if let Ok(link) = text.parse::<ShoalLink>() {
                prop_assert_eq!(link.to_string().parse::<ShoalLink>().unwrap(), link);
            }
        }

        #[test]
        fn any_end_of_a_good_link_is_a_link_or_an_error(tail in r"[/?%=&.a-f0-9:\\]{0,40}|[/?]\PC{0,30}") {
            if let Ok(link) = format!("{CID}{tail}").parse::<ShoalLink>() {
                prop_assert_eq!(link.to_string().parse::<ShoalLink>().unwrap(), link);
            }
        }
    }
}
