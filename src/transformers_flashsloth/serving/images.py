"""Images that strangers name, read within limits: `data:` URIs, URLs, and the files of one directory."""

import http.client
import socket
import urllib.request
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from PIL import Image

from ..asking.untrusted import FORMATS, MAX_PIXELS
from ..checkpoints.opening import InputError
from ..model.image_inputs import DOWNLOAD_ERRORS, ascii_url, decode_base64, receive

MAX_IMAGES = 16
MAX_ENCODED_BYTES = 20 * 2**20
MAX_SIDE = 16_384
URL_TIMEOUT_SECONDS = 20
TOO_LARGE = f"is too large: a side may have {MAX_SIDE} pixels, all images of a request together {MAX_PIXELS}"


class ImageReader:
    """
    Reads the images of a request.

    Args:
        directory (`Path`, *optional*): whose files may be named; none by default.
        private_urls (`bool`, defaults to `False`): whether URLs may lead to addresses that are not on the public
            internet, such as this machine's.
    """

    def __init__(self, directory: Path | None = None, private_urls: bool = False):
        self.directory = directory and directory.resolve()
        self.private_urls = private_urls
        handlers = (
            [urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()]
            if private_urls
            else [_PublicHTTPHandler(), _PublicHTTPSHandler()]
        )
        # Put together by hand, as `build_opener` lets redirections lead to FTP.
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            *handlers,
            urllib.request.ProxyHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.UnknownHandler(),
        ):
            self.opener.add_handler(handler)

    def read(self, urls: list[str]) -> list[Image.Image]:
        """
        Reads images in the order of their URLs.

        Raises:
            InputError: naming the first image that cannot be had, by its number.
        """
        if len(urls) > MAX_IMAGES:
            raise InputError(f"the request has {len(urls)} images: at most {MAX_IMAGES} are read")
        images, pixels = [], 0
        for number, url in enumerate(urls, 1):
            try:
                image = _open(self._encoded(url))
                pixels += image.width * image.height
                if pixels > MAX_PIXELS or max(image.size) > MAX_SIDE:
                    raise InputError(TOO_LARGE)
                images.append(_load(image))
            except InputError as error:
                raise InputError(f"image {number} {error}") from error
        return images

    def _encoded(self, url: str) -> bytes:
        scheme = url[:8].lower()
        if scheme.startswith("data:"):
            encoded = _decode(url)
        elif scheme.startswith(("http://", "https://")):
            encoded = self._download(url)
        else:
            encoded = self._read_file(url)
        if len(encoded) > MAX_ENCODED_BYTES:
            raise InputError(f"has more than {MAX_ENCODED_BYTES} bytes")
        return encoded

    def _read_file(self, url: str) -> bytes:
        try:
            if self.directory is not None:
                is_uri = url.startswith("file:")
                named = urllib.request.url2pathname(urlsplit(url).path) if is_uri else url
                path = (self.directory / named).resolve()
                if path.is_relative_to(self.directory) and path.is_file():
                    with open(path, "rb") as file:
                        return file.read(MAX_ENCODED_BYTES + 1)
        except (OSError, ValueError, RuntimeError):  # names that no file can have, and links in a circle
            pass
        # The same words whether or not there is such a file.
        raise InputError("is neither an http or https URL, nor a `data:` URI, nor a file that the operator allows")

    def _download(self, url: str) -> bytes:
        deadline = monotonic() + URL_TIMEOUT_SECONDS
        try:
            request = urllib.request.Request(ascii_url(url), headers={"User-Agent": "transformers-flashsloth"})
            with self.opener.open(request, timeout=URL_TIMEOUT_SECONDS) as response:
                return receive(response, MAX_ENCODED_BYTES, deadline)
        except DOWNLOAD_ERRORS as error:
            raise InputError(f"cannot be downloaded: {error}") from error


def _decode(uri: str) -> bytes:
    header, _, encoded = uri.partition(",")
    try:
        if header.lower().endswith(";base64"):
            return decode_base64(encoded)
    except ValueError:
        pass
    raise InputError("is no `data:` URI of the form `data:image/png;base64,...`")


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(TOO_LARGE) from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise InputError(f"is no image in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise InputError(f"is damaged: {error}") from error
    return image


class _PublicPeer:
    """A connection that is made to addresses on the public internet only."""

    def connect(self):
        # Looked up first, so that answers do not tell which private ports are open; and what was connected to counts,
        # as a name may lead elsewhere the second time.
        for *_, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            _refuse_private(address)
        super().connect()
        _refuse_private(self.sock.getpeername())


def _refuse_private(address: tuple) -> None:
    if not ip_address(address[0]).is_global:
        raise OSError("the address is not on the public internet, and the operator does not allow others")


class _PublicHTTPConnection(_PublicPeer, http.client.HTTPConnection):
    pass


class _PublicHTTPSConnection(_PublicPeer, http.client.HTTPSConnection):
    pass


class _PublicHTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_PublicHTTPConnection, request)


class _PublicHTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_PublicHTTPSConnection, request)
