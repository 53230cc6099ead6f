//! Which `Content-Type` a response that is made here gets when nobody has said: by the file extension of its key, or by
//! its first bytes. Both as Go's standard library has it, which the add-on's users know.

/// Of the first bytes, how many are looked at (WHATWG MIME Sniffing, "resource header").
const SNIFFED: usize = 512;

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const XML: &str = "text/xml; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The type that a name's extension stands for: what Firefox, Chrome and Go's package `mime` (1.26) agree upon.
pub(crate) fn of_name(name: &str) -> Option<&'static str> {
    let (_, extension) = name.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" | "shtml" | "ehtml" => HTML,
        "txt" | "text" => TEXT,
        "xml" | "xsl" | "xbl" => XML,
        "js" | "mjs" => SCRIPT,
        "css" => "text/css; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "ics" => "text/calendar; charset=utf-8",
        "vtt" => "text/vtt; charset=utf-8",
        "eml" => "message/rfc822",
        "json" => "application/json",
        "xht" | "xhtml" => "application/xhtml+xml",
        "rdf" => "application/rdf+xml",
        "rtf" => "application/rtf",
        "pdf" => "application/pdf",
        "ps" | "eps" | "ai" => "application/postscript",
        "wasm" => "application/wasm",
        "gz" => "application/gzip",
        "zip" => "application/zip",
        "bin" | "com" | "exe" => "application/octet-stream",
        "apk" => "application/vnd.android.package-archive",
        "doc" => "application/msword",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "ppt" => "application/vnd.ms-powerpoint",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "xls" => "application/vnd.ms-excel",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "apng" => "image/apng",
        "avif" => "image/avif",
        "bmp" => "image/bmp",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "xbm" => "image/x-xbitmap",
        "ico" => "image/vnd.microsoft.icon",
        "tif" | "tiff" => "image/tiff",
        "jpg" | "jpeg" | "jfif" | "pjp" | "pjpeg" => "image/jpeg",
        "mp3" => "audio/mpeg",
        "m4a" => "audio/mp4",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "webm" => "audio/webm",
        "oga" | "ogg" | "opus" => "audio/ogg",
        "ogv" => "video/ogg",
        "mp4" => "video/mp4",
        _ => return None,
    })
}

/// The type that `body` looks like, by the signatures of WHATWG MIME Sniffing that a text can have: bodies are strings of
/// custom resources and ConfigMaps, so pictures and archives do not come here.
pub(crate) fn of_body(body: &[u8]) -> &'static str {
    /// Tags that begin a page.
    const TAGS: [&str; 17] = [
        "<!doctype html",
        "<html",
        "<head",
        "<script",
        "<iframe",
        "<h1",
        "<div",
        "<font",
        "<table",
        "<a",
        "<style",
        "<title",
        "<b",
        "<body",
        "<br",
        "<p",
        "<!--",
    ];
    let body = &body[..body.len().min(SNIFFED)];
    let text = body.trim_ascii_start();
    if TAGS.iter().any(|tag| is_tag(text, tag.as_bytes())) {
        HTML
    } else if text.starts_with(b"<?xml") {
        XML
    } else if body.starts_with(b"%PDF-") {
        "application/pdf"
    } else if body.starts_with(b"%!PS-Adobe-") {
        "application/postscript"
    } else if text.iter().any(|byte| matches!(byte, 0..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f)) {
        "application/octet-stream"
    } else {
        TEXT
    }
}

/// Whether `text` begins with `tag`, in any case, and a byte that ends a tag's name.
fn is_tag(text: &[u8], tag: &[u8]) -> bool {
    let Some((begin, rest)) = text.split_at_checked(tag.len()) else { return false };
    begin.eq_ignore_ascii_case(tag) && matches!(rest.first(), Some(b' ' | b'>'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_tell_the_type_in_any_case() {
        assert_eq!(of_name("index.html"), Some(HTML));
        assert_eq!(of_name("a.b.JSON"), Some("application/json"));
        assert_eq!(of_name("LICENSE"), None);
        assert_eq!(of_name("x.unknown"), None);
    }

    #[test]
    fn bodies_are_recognised_by_their_first_bytes() {
        assert_eq!(of_body(b"<h1>Starting</h1>"), HTML);
        assert_eq!(of_body(b"\n  <!DOCTYPE html><p>"), HTML);
        assert_eq!(of_body(b"<?xml version='1.0'?>"), XML);
        assert_eq!(of_body(b"{\"a\":1}"), TEXT);
        assert_eq!(of_body(b"<h1"), TEXT, "not yet a tag");
        assert_eq!(of_body(b"<header>"), TEXT, "not one of the tags");
        assert_eq!(of_body(b"a\0b"), "application/octet-stream");
    }
}
