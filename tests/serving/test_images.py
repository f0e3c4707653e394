import base64
import os
import socket
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from PIL import Image

from tests.encoded_images import data_uri, encoded, png_of
from tests.odd_server import odd_website
from transformers_flashsloth.checkpoints.opening import InputError
from transformers_flashsloth.serving import images as serving_images
from transformers_flashsloth.serving.images import ImageReader


@pytest.fixture
def directory(tmp_path):
    """An allowed directory, with a neighbour that is not."""
    allowed = tmp_path / "allowed"
    (allowed / "inside").mkdir(parents=True)
    for path in (allowed / "blue.png", allowed / "inside" / "blue.png", tmp_path / "secret.png"):
        path.write_bytes(encoded())
    (allowed / "text.png").write_text("no image")
    return allowed


@pytest.fixture
def website():
    """A server of images and of traps; returns its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
            elif self.path == "/blue.png":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(encoded())
            elif self.path == "/slow.png":
                self.send_response(200)
                self.end_headers()
                with suppress(BrokenPipeError):
                    for byte in encoded()[:20]:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.1)
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refusal(reader: ImageReader, *urls: str) -> str:
    with pytest.raises(InputError) as error:
        reader.read(list(urls))
    return str(error.value)


@pytest.mark.parametrize("file_format", serving_images.FORMATS)
def test_reads_data_uris(file_format):
    (image,) = ImageReader().read([data_uri(encoded("blue", file_format))])

    assert image.format == file_format
    assert image.convert("RGB").getpixel((0, 0))[2] > 250


def test_reads_files_of_the_directory(directory):
    names = ["blue.png", "inside/../inside/blue.png", str(directory / "blue.png"), (directory / "blue.png").as_uri()]

    assert [image.size for image in ImageReader(directory).read(names)] == [(20, 10)] * 4


def test_reads_urls(website):
    images = ImageReader(private_urls=True).read([f"{website}/blue.png", f"{website}/to/{website}/blue.png"])

    assert [image.size for image in images] == [(20, 10)] * 2


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "inside/../../secret.png", "{}/../secret.png", "file://{}/../secret.png", "link.png",
     "circle.png", "missing.png", "inside", "pipe", "/dev/zero", "a\0b", "x" * 5000, "\ud800", "", "~/x.png"],
)  # fmt: skip
def test_no_other_file_is_read(directory, name):
    (directory / "link.png").symlink_to(directory.parent / "secret.png")
    (directory / "circle.png").symlink_to(directory / "circle.png")
    os.mkfifo(directory / "pipe")

    expected = "image 1 is neither an http or https URL, nor a `data:` URI, nor a file that the operator allows"
    assert refusal(ImageReader(directory), name.format(directory)) == expected


def test_no_file_is_read_by_default(directory, monkeypatch):
    monkeypatch.chdir(directory)

    assert "the operator allows" in refusal(ImageReader(), "blue.png")
    assert "the operator allows" in refusal(ImageReader(), (directory / "blue.png").as_uri())


BAD_CONTENT = {
    "empty": (b"", "is no image"),
    "text": (b"no image", "is no image"),
    "other format": (encoded("blue", "TIFF"), "is no image in PNG, JPEG, WEBP, GIF or BMP"),
    "cut short": (encoded()[:50], "is damaged"),
    "bomb": (png_of(60_000, 60_000), "is too large"),
    "many pixels": (png_of(10_000, 10_000), "is too large"),
    "long": (png_of(1_000_000, 1), "is too large"),
}


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_bad_content_is_refused_by_the_number_of_the_image(name):
    content, reason = BAD_CONTENT[name]

    assert refusal(ImageReader(), data_uri(encoded()), data_uri(content)).startswith(f"image 2 {reason}")


@pytest.mark.parametrize("uri", ["data:", "data:,blue", "data:image/png;base64,###", "data:image/png;base64,é"])
def test_bad_data_uris(uri):
    assert "`data:` URI" in refusal(ImageReader(), uri)


def test_limits_of_bytes_pixels_and_images(directory, website, monkeypatch):
    monkeypatch.setattr(serving_images, "MAX_ENCODED_BYTES", 100)
    (directory / "large.png").write_bytes(encoded() + bytes(100))
    reader = ImageReader(directory, private_urls=True)
    for url in ("large.png", data_uri(encoded() + bytes(100))):
        assert refusal(reader, url) == "image 1 has more than 100 bytes"
    monkeypatch.setattr(serving_images, "MAX_ENCODED_BYTES", 10)
    assert refusal(reader, f"{website}/blue.png") == "image 1 cannot be downloaded: it has more than 10 bytes"
    monkeypatch.undo()

    monkeypatch.setattr(serving_images, "MAX_PIXELS", 500)
    assert len(reader.read(["blue.png"] * 2)) == 2
    assert refusal(reader, *["blue.png"] * 3).startswith("image 3 is too large")
    monkeypatch.setattr(serving_images, "MAX_IMAGES", 2)
    assert refusal(reader, *["blue.png"] * 3) == "the request has 3 images: at most 2 are read"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "10.0.0.1", "169.254.169.254", "[::1]"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_private_addresses_are_refused(scheme, host):
    assert "not on the public internet" in refusal(ImageReader(), f"{scheme}://{host}:9/blue.png")


def test_a_name_that_leads_to_a_private_address_the_second_time(website, monkeypatch):
    look_up, public = socket.getaddrinfo, [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))]
    answers = iter([public])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: next(answers, None) or look_up(*args, **kwargs))

    assert "not on the public internet" in refusal(ImageReader(), f"{website}/blue.png")
    assert next(answers, "asked") == "asked"


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/blue.png", "data:,x"])
def test_redirections_stay_with_http(website, target):
    assert "cannot be downloaded" in refusal(ImageReader(private_urls=True), f"{website}/to/{target}")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/", "{}/missing.png", "{}/to/{}/missing.png", "http://[::1/x", "http://", "http://a b/\r\n"],
)
def test_failing_downloads(website, url):
    assert "cannot be downloaded" in refusal(ImageReader(private_urls=True), url.replace("{}", website))


def test_a_slow_download_ends(website, monkeypatch):
    monkeypatch.setattr(serving_images, "URL_TIMEOUT_SECONDS", 0.3)

    started = time.monotonic()

    assert "timed out" in refusal(ImageReader(private_urls=True), f"{website}/slow.png")
    assert time.monotonic() - started < 1.5


def test_odd_urls_and_connections(tmp_path):
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "blue.png")
    content = (tmp_path / "blue.png").read_bytes()
    reader = ImageReader(private_urls=True)
    with odd_website(content) as (address, paths):
        (image,) = reader.read([f"{address}/a picture \u732b.png"])
        assert image.size == (40, 30) and paths[-1] == "/a%20picture%20%E7%8C%AB.png"
        assert "the connection was cut after" in refusal(reader, f"{address}/cut")
        wrapped = base64.encodebytes(content * 1).decode()
        assert reader.read([f"data:image/png;base64,{wrapped}"])[0].size == (40, 30)
    for url in ("http://exa mple.com:port/x", "http://[::1/x", "http://x..y/z"):
        assert refusal(reader, url).startswith("image 1 cannot be downloaded: ")
