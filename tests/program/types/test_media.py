"""Image, Audio and File: what they are made from, and what they refuse."""

import base64
import http.server
import io
import os
import threading
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from dspy_stream.program.types import Audio, File, Image, binary
from dspy_stream.program.types.binary import MAX_BYTES, media_type, read, split_data_uri

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(16))
WAV = b"RIFF\x24\0\0\0WAVEfmt "
PDF = b"%PDF-1.7\n"


def uri(kind, data):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class TestImage:
    def test_what_dspys_constructor_takes(self):
        address = "https://x.example/a.png"
        assert Image(address, download=False, verify=True) == Image(url=address) == Image({"url": address})
        with pytest.raises(ValueError, match="from_url"):
            Image(address, download=True)

    @pytest.mark.parametrize("kind", [Image, Audio, File])
    def test_a_file_that_is_not_there(self, kind, tmp_path):
        for error in (FileNotFoundError, ValueError):
            with pytest.raises(error, match=r"File not found: .*gone"):
                kind.from_path(tmp_path / "gone")

    @pytest.mark.parametrize("url", ["https://x.example/a.png", "http://10.0.0.1/a?b=c", "gs://bucket/a.png"])
    def test_an_address_is_kept_as_it_is(self, url):
        assert Image(url).url == url
        assert Image(url=url) == Image.model_validate(url) == Image.model_validate({"url": url})
        assert Image(url).format() == [{"type": "image_url", "image_url": {"url": url}}]

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (PNG, "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"GIF89a..", "image/gif"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
            (b"BM......", "image/bmp"),
        ],
    )
    def test_the_kind_of_bytes_is_told_by_how_they_begin(self, data, kind):
        assert Image.from_bytes(data).url == uri(kind, data)
        assert Image(data) == Image.from_bytes(data)

    @pytest.mark.parametrize(
        "bad",
        [
            *("cat.png", "/etc/passwd", "../x", "~/x", "C:\\x.png", "file:///etc/passwd", "ftp://x/y", ""),
            *("http://", "https://a b/c", "https://x/\ny", "javascript:alert(1)", "data:image/png,abc"),
            *("data:text/html;base64,aGk=", "data:image/png;base64,", "data:image/png;base64,@@@@"),
            "https://x.example/" + "a" * 9000,
        ],
    )
    def test_anything_else_is_refused(self, bad):
        with pytest.raises(ValidationError):
            Image(bad)
        with pytest.raises(ValidationError):
            TypeAdapter(Image).validate_python(bad)

    def test_a_path_is_refused_with_what_to_do(self, tmp_path):
        path = tmp_path / "cat.png"
        path.write_bytes(PNG)
        with pytest.raises(ValidationError, match=r"Image\.from_path"):
            Image(str(path))
        assert Image.from_path(path).url == uri("image/png", PNG)
        assert Image.from_path(str(path)) == Image.from_file(path)

    @pytest.mark.parametrize("data", [b"", b"hello", PDF, WAV])
    def test_bytes_that_are_no_picture_are_refused(self, data):
        with pytest.raises(ValueError, match="no image"):
            Image.from_bytes(data)

    def test_it_is_immutable_hashable_and_short_in_print(self):
        image = Image.from_bytes(PNG)
        with pytest.raises(ValidationError):
            image.url = "https://x.example"
        assert hash(image) == hash(Image.from_bytes(PNG))
        assert "iVBOR" not in repr(image)
        assert "iVBOR" not in str(image)

    def test_pil_pictures_are_encoded(self):
        class Picture:  # what is used of PIL
            def getbands(self):
                return ("R",)

            def save(self, file, format):
                assert format == "PNG"
                file.write(PNG)

        assert Image(Picture()) == Image.from_pil(Picture()) == Image.from_PIL(Picture())

    def test_what_dspy_saved_is_read(self):
        text = (
            '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url", "image_url": {"url": "https://x/a"}}]'
            "<<CUSTOM-TYPE-END-IDENTIFIER>>"
        )
        assert Image.model_validate(text) == Image("https://x/a")
        assert (
            Image.model_validate({"type": "image_url", "image_url": {"url": "https://x/a"}}).url
            == "https://x/a"
        )

    @pytest.mark.parametrize(
        "bad",
        [
            "<<CUSTOM-TYPE-START-IDENTIFIER>>",
            "<<CUSTOM-TYPE-START-IDENTIFIER>>[]<<CUSTOM-TYPE-END-IDENTIFIER>>",
            "<<CUSTOM-TYPE-START-IDENTIFIER>>[1]<<CUSTOM-TYPE-END-IDENTIFIER>>",
            '<<CUSTOM-TYPE-START-IDENTIFIER>>{"type": "text"}<<CUSTOM-TYPE-END-IDENTIFIER>>',
            "<<CUSTOM-TYPE-START-IDENTIFIER>>" + "[" * 100_000 + "<<CUSTOM-TYPE-END-IDENTIFIER>>",
        ],
    )
    def test_a_damaged_saved_value_is_a_validation_error(self, bad):
        with pytest.raises(ValidationError):
            Image.model_validate(bad)

    def test_in_models_lists_and_json(self):
        class Page(BaseModel):
            title: str
            pictures: list[Image]

        page = Page(title="t", pictures=["https://x/a", {"url": "https://x/b"}, PNG])
        assert [each.url[:11] for each in page.pictures] == ["https://x/a", "https://x/b", "data:image/"]
        assert Page.model_validate_json(page.model_dump_json()) == page


class TestAudio:
    def test_bytes_by_name(self):
        made = Audio(data=b"hi", audio_format="wav")
        assert (base64.b64decode(made.data), made.audio_format) == (b"hi", "wav")
        assert Audio(data=WAV).audio_format == "wav"
        with pytest.raises(ValueError, match="audio_format"):
            Audio(data=b"hi")

    def test_a_data_uri_is_taken_apart(self):
        assert Audio(uri("audio/x-wav", WAV)) == Audio(
            data=base64.b64encode(WAV).decode(), audio_format="wav"
        )
        block = {"data": base64.b64encode(WAV).decode(), "format": "wav"}
        assert Audio(WAV).format() == [{"type": "input_audio", "input_audio": block}]

    @pytest.mark.parametrize(
        ("data", "name"), [(WAV, "wav"), (b"ID3\x04", "mp3"), (b"fLaC\0", "flac"), (b"OggS\0", "ogg")]
    )
    def test_the_kind_of_bytes_is_told_by_how_they_begin(self, data, name):
        assert Audio.from_bytes(data).audio_format == name

    def test_the_format_can_be_said(self):
        assert Audio.from_bytes(b"raw", "pcm16").audio_format == "pcm16"

    @pytest.mark.parametrize("bad", ["a.wav", "https://x/a.wav", "data:image/png;base64,aGk=", b"hello", b""])
    def test_anything_else_is_refused(self, bad):
        with pytest.raises(ValidationError if isinstance(bad, str) else ValueError):
            TypeAdapter(Audio).validate_python(bad)

    def test_a_bad_name_of_a_format_is_refused(self):
        with pytest.raises(ValidationError, match="audio format"):
            Audio(data="aGk=", audio_format="wav; rm -rf")

    def test_from_path(self, tmp_path):
        (tmp_path / "a.wav").write_bytes(WAV)
        assert Audio.from_path(tmp_path / "a.wav") == Audio(WAV)

    @pytest.mark.parametrize(
        ("samples", "channels"),
        [
            ([0.0, 1.0, -1.0, 5.0], 1),
            (np.array([0.0, 1.0, -1.0, 5.0], dtype=np.float32), 1),
            ([[0.0], [1.0], [-1.0], [5.0]], 1),
            (np.array([[0.0, 1.0], [-1.0, 5.0]]), 2),
        ],
    )
    def test_samples_become_a_wav_file(self, samples, channels):
        made = Audio.from_array(samples, 8000)
        with wave.open(io.BytesIO(base64.b64decode(made.data))) as file:
            assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (channels, 8000, 2)
            levels = np.frombuffer(file.readframes(10), dtype="<i2").tolist()
        assert levels == [0, 32767, -32767, 32767]

    def test_another_format_of_samples_is_refused(self):
        with pytest.raises(ValueError, match="wav"):
            Audio.from_array([0.0], 8000, "mp3")


class TestFile:
    def test_from_bytes_and_back(self):
        made = File.from_bytes(PDF, "a.pdf")
        assert made.file_data == uri("application/pdf", PDF)
        assert made.format() == [{"type": "file", "file": {"file_data": made.file_data, "filename": "a.pdf"}}]
        assert File.model_validate(made.model_dump(mode="json")) == made
        assert File.model_validate(made.format()[0]) == made

    @pytest.mark.parametrize(
        ("name", "data", "kind"),
        [
            ("a.txt", b"hi", "text/plain"),
            ("a.bin", b"hi", "application/octet-stream"),
            ("a.txt", PDF, "application/pdf"),
            ("a.CSV", b"a,b", "text/csv"),
        ],
    )
    def test_from_path_tells_the_kind(self, tmp_path, name, data, kind):
        (tmp_path / name).write_bytes(data)
        made = File.from_path(tmp_path / name)
        assert made == File(file_data=uri(kind, data), filename=name)

    def test_the_kind_can_be_said(self):
        assert File.from_bytes(b"x", mime_type="a/b").file_data == uri("a/b", b"x")

    @pytest.mark.parametrize("bad", ["a.pdf", "https://x/a.pdf", {}, {"filename": "a"}, {"path": "a"}])
    def test_anything_else_is_refused(self, bad):
        with pytest.raises(ValidationError):
            TypeAdapter(File).validate_python(bad)

    def test_an_id_alone(self):
        assert File.from_file_id("f-1").format() == [{"type": "file", "file": {"file_id": "f-1"}}]


class TestReading:
    def test_a_file_outside_of_the_root_is_refused(self, tmp_path):
        inside, outside = tmp_path / "in", tmp_path / "out.png"
        inside.mkdir()
        (inside / "a.png").write_bytes(PNG)
        outside.write_bytes(PNG)
        (inside / "link.png").symlink_to(outside)
        assert Image.from_path("a.png", root=inside) == Image.from_bytes(PNG)
        for path in ("../out.png", str(outside), "link.png", "."):
            with pytest.raises(ValueError, match="not below"):
                Image.from_path(path, root=inside)

    def test_only_regular_files_are_read(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(ValueError, match="no regular file"):
                read(path)
        with pytest.raises(OSError, match="directory"):
            read(tmp_path)

    def test_too_large_a_file_is_refused_unread(self, tmp_path):
        with open(tmp_path / "big", "wb") as file:
            file.truncate(MAX_BYTES + 1)
        with pytest.raises(ValueError, match="more than"):
            Image.from_path(tmp_path / "big")

    def test_too_many_bytes_are_refused(self, monkeypatch):
        monkeypatch.setattr(binary, "MAX_BYTES", 10)
        with pytest.raises(ValueError, match="more than"):
            Image.from_bytes(PNG)
        with pytest.raises(ValidationError, match="more than"):
            Image(uri("image/png", PNG))


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(200 if self.path == "/a.png" else 404)
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class TestFetching:
    def test_only_on_request(self, site):
        assert Image.from_url(f"{site}/a.png").url == f"{site}/a.png"
        assert Image.from_url(f"{site}/a.png", download=True) == Image.from_bytes(PNG)

    def test_what_is_not_there_is_an_error(self, site):
        with pytest.raises(OSError, match="404"):
            Image.from_url(f"{site}/b.png", download=True)

    def test_what_is_no_sound_is_refused(self, site):
        with pytest.raises(ValueError, match="no sound"):
            Audio.from_url(f"{site}/a.png")

    def test_a_redirect_leads_to_no_file(self, site, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        with pytest.raises((OSError, ValueError)):
            Image.from_url(f"{site}/to/file://{tmp_path}/a.png", download=True)
        with pytest.raises(ValueError, match="only http"):
            Image.from_url(f"file://{tmp_path}/a.png", download=True)

    def test_too_much_is_not_taken(self, site, monkeypatch):
        monkeypatch.setattr(binary, "MAX_BYTES", 10)
        with pytest.raises(ValueError, match="more than"):
            Image.from_url(f"{site}/a.png", download=True)


@given(st.binary(max_size=40))
def test_any_bytes_have_a_kind_or_none(data):
    kind = media_type(data)
    assert kind is None or "/" in kind


@given(st.sampled_from(["image/png", "audio/wav", "a/b"]), st.binary(min_size=1, max_size=200))
def test_data_uris_come_apart_again(kind, data):
    found, body = split_data_uri(uri(kind, data))
    assert (found, base64.b64decode(body)) == (kind, data)


@given(st.text(max_size=60) | st.text(max_size=30).map("data:".__add__))
def test_any_text_is_a_reference_or_a_value_error(text):
    for kind in (Image, Audio, File):
        try:
            made = kind.model_validate(text)
        except ValidationError:
            continue
        assert kind.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    "ask", [lambda url: Audio.from_url(url, verify=False), lambda url: Audio.from_url(url, False)]
)
def test_certificates_are_always_verified(ask):
    with pytest.raises(ValueError, match="always verified"):
        ask("https://127.0.0.1:1/a.wav")
    assert Image.from_url("https://x.example/a.png", verify=True).url == "https://x.example/a.png"
    with pytest.raises(ValueError, match="always verified"):
        Image.from_url("https://127.0.0.1:1/a.png", True, verify=False)
