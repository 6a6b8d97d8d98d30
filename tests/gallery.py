"""A gallery of image files, good, odd and bad, each with what must be said of it."""

import importlib.util
import io
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features


@dataclass(frozen=True)
class Item:
    """What is expected of a file.

    Attributes:
        size: (width, height) of the upright image; None where it must be left out.
        reason: what the reason begins with, where it is left out.
        served: whether the exported model takes it.
        pixels: uint8 [H, W, 3], where they are known.
        tolerance: greatest difference from them.
    """

    size: tuple[int, int] | None
    reason: str = ""
    served: bool = True
    pixels: np.ndarray | None = None
    tolerance: int = 0


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A whole PNG of side x side pixels, all black: 7.5 GB of RGB in 300 kB, where the side is 50,000."""
    row = bytes(1 + (side + 7) // 8)
    pack = zlib.compressobj(1)
    packed = b"".join(pack.compress(row * 1000) for _ in range(side // 1000)) + pack.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def image(height=32, width=48) -> Image.Image:
    """A smooth image whose corners all differ."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return Image.fromarray(np.stack([250 * x, 250 * y, 120 * (1 - x)], -1).astype(np.uint8))


def gallery(folder: Path) -> dict[str, Item]:
    """Writes the files; name → what is expected."""
    items: dict[str, Item] = {}

    def write(name, data, *expected, **more):
        (folder / name).write_bytes(data)
        items[name] = Item(*expected, **more)

    folder.mkdir(parents=True, exist_ok=True)
    rgb = image()
    exact = np.asarray(rgb)
    palette = rgb.quantize(64)
    indexed = np.asarray(palette.convert("RGB"))
    grey = rgb.convert("L")
    greys = np.repeat(np.asarray(grey)[..., None], 3, -1)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(grey)
    size = rgb.size
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    jpeg, png = encode(noise, "JPEG"), encode(noise, "PNG")
    gif, bmp = encode(noise.quantize(64), "GIF"), encode(noise, "BMP")
    webp = encode(noise, "WEBP")

    # Cut short.
    write("empty.jpg", b"", None, "empty file")
    for kind, data in (("jpg", jpeg), ("png", png), ("gif", gif), ("bmp", bmp), ("webp", webp)):
        start = "damaged: it starts like JPEG" if kind == "jpg" else "not an image"
        write(f"cut to 3 bytes.{kind}", data[:3], None, start)
        start = {"jpg": "damaged: it starts like JPEG", "gif": "damaged: it starts like GIF"}
        write(f"cut in the header.{kind}", data[:22], None, start.get(kind, "truncated: "))
        write(f"cut in the middle.{kind}", data[: len(data) // 2], None, "truncated: ")
        write(f"cut near the end.{kind}", data[: len(data) - 40], None, "truncated: ")

    # No images at all.
    write("text.jpg", b"to do: take images\n" * 20, None, "not an image")
    write("page.png", b"<!doctype html><title>404</title>", None, "not an image")
    write("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', None, "not an image")
    write("drawing.svg", b"<svg/>", None, "unsupported file type .svg")
    write("notes.txt", b"hello", None, "unsupported file type .txt")
    write("no ending", png, noise.size, pixels=np.asarray(noise))
    write("zeros.jpg", bytes(5000), None, "not an image")
    write("paper.gif", b"%PDF-1.7\n" + bytes(100), None, "not an image")

    # Damaged inside.
    write("flipped bit.png", patched(png, len(png) // 2, b"\0\1\2\3"), None, "damaged")
    write("damaged header.png", patched(png, 16, b"\0\0\1\1"), None, "damaged")
    write("damaged pixels.jpg", patched(jpeg, len(jpeg) // 2, b"\x5a" * 99), (64, 64))  # smeared

    # More than memory.
    large = struct.pack(">HH", 60000, 60000)
    sof = jpeg.index(b"\xff\xc0") + 5
    write("bomb.png", png_bomb(50_000), None, "too large: 2,500,000,000 pixels")
    write("bomb.jpg", patched(jpeg, sof, large), None, "too large: 3,600,000,000 pixels")
    write("bomb.gif", patched(gif, 6, b"\xff" * 4), None, "too large: 4,294,836,225 pixels")
    frame = gif.index(b"\x2c\0\0\0\0") + 5
    write("bomb inside.gif", patched(gif, frame, b"\xff" * 4), None, "too large")
    write("bomb.bmp", patched(bmp, 18, struct.pack("<ii", 50000, 50000)), None, "too large")
    write("bomb.webp", patched(webp, 26, b"\xff\x3f\xff\x3f"), None, "too large: 268,402,689")
    # Of 100 million pixels Pillow only warns.
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    start = png[:8] + png_chunk(b"IHDR", header)
    write("large.png", start + png[33:], None, "too large: 100,000,000 pixels")
    with (folder / "huge.bmp").open("wb") as file:  # takes no room on the disk
        file.truncate(20 << 30)
    items["huge.bmp"] = Item(None, "too large: the file has 20,480 MiB")

    # Odd and good.
    write("plain.jpg", encode(rgb, "JPEG", quality=95), size, pixels=exact, tolerance=12)
    write("progressive.jpeg", encode(rgb, "JPEG", progressive=True), size)
    write("grey.jpe", encode(grey, "JPEG", quality=95), size, pixels=greys, tolerance=4)
    cmyk = encode(rgb.convert("CMYK"), "JPEG", quality=95)
    write("CMYK.jpg", cmyk, size, pixels=exact, tolerance=12)
    write("PNG called.jpg", encode(rgb, "PNG"), size, pixels=exact)
    write("JPEG called.png", encode(rgb, "JPEG", quality=95), size, pixels=exact, tolerance=12)
    write("LOUD.PNG", encode(rgb, "PNG"), size, pixels=exact)
    more = encode(rgb, "PNG") + b"what an editor appended"
    write("with more after it.png", more, size, pixels=exact)
    deep = np.asarray(grey).astype(np.uint16) * 256 + 99
    low, high = int(greys.min()), int(greys.max())  # 16 bits are scaled by the range in use
    stretched = ((greys - float(low)) * 255 / (high - low)).round().astype(np.uint8)
    write("16 bits.png", encode(Image.fromarray(deep), "PNG"), size, pixels=stretched)
    write("palette.png", encode(palette, "PNG"), size, pixels=indexed)
    see_through = encode(palette, "PNG", transparency=bytes(range(0, 256, 4)))
    write("palette with alpha.png", see_through, size, pixels=indexed)
    write("alpha.png", encode(alpha, "PNG"), size, pixels=exact)
    black = grey.point(lambda v: v > 80, "1")
    bits = np.repeat(np.asarray(black)[..., None] * np.uint8(255), 3, -1)
    write("1 bit.png", encode(black, "PNG"), size, pixels=bits)
    for kind in ("png", "jpg", "gif", "bmp", "webp"):
        name = {"jpg": "JPEG"}.get(kind, kind.upper())
        write(f"1x1.{kind}", encode(Image.new("RGB", (1, 1), (9, 200, 90)), name), (1, 1))
    write("20000x3.png", encode(image(3, 20_000), "PNG"), (20_000, 3))
    write("3x20000.jpg", encode(image(20_000, 3), "JPEG"), (3, 20_000))
    write("plain.gif", encode(palette, "GIF"), size, pixels=indexed)
    turned = rgb.rotate(180).quantize(64)
    frames = dict(save_all=True, append_images=[turned], duration=40)
    write("animated.gif", encode(palette, "GIF", **frames), size, pixels=indexed)
    clear = np.where(np.asarray(palette)[..., None] == 5, 0, indexed).astype(np.uint8)
    write("transparent.gif", encode(palette, "GIF", transparency=5), size, pixels=clear)
    small = patched(encode(palette, "GIF"), 6, struct.pack("<HH", 60, 50))
    write("small frame.gif", small, (60, 50), served=False)
    write("plain.bmp", encode(rgb, "BMP"), size, pixels=exact)
    write("palette.bmp", encode(palette, "BMP"), size, pixels=indexed, served=False)
    write("grey.bmp", encode(grey, "BMP"), size, pixels=greys, served=False)
    write("32 bits.bmp", encode(alpha, "BMP"), size, pixels=exact, served=False)
    write("lossless.webp", encode(rgb, "WEBP", lossless=True), size, pixels=exact)
    write("lossy.webp", encode(rgb, "WEBP", quality=95), size, pixels=exact, tolerance=12)
    clear = encode(alpha, "WEBP", lossless=True, exact=True)
    write("alpha.webp", clear, size, pixels=exact, served=False)
    moving = encode(rgb, "WEBP", lossless=True, save_all=True, append_images=[rgb.rotate(180)])
    write("animated.webp", moving, size, pixels=exact, served=False)

    # Formats that TensorFlow does not read.
    write("TIFF called.jpg", encode(rgb, "TIFF"), size, pixels=exact, served=False)
    write(
        "packed.tiff", encode(rgb, "TIFF", compression="tiff_lzw"), size, pixels=exact, served=False
    )
    pages = encode(rgb, "TIFF", save_all=True, append_images=[noise])
    write("two pages.tif", pages, size, pixels=exact, served=False)
    deep_tiff = encode(Image.fromarray(deep), "TIFF")
    write("16 bits.tif", deep_tiff, size, pixels=stretched, served=False)
    turned_tiff = encode(rgb, "TIFF", tiffinfo={0x0112: 6})
    pixels = np.asarray(_turned(rgb, 6))
    write("turned.tif", turned_tiff, size[::-1], pixels=pixels, served=False)
    write("lossless.jp2", encode(rgb, "JPEG2000"), size, pixels=exact, served=False)
    write("plain.ppm", encode(rgb, "PPM"), size, pixels=exact, served=False)
    write("grey.pgm", encode(grey, "PPM"), size, pixels=greys, served=False)
    write("stereo.mpo", encode(rgb, "MPO", save_all=True, append_images=[noise]), size)
    write("called so.jfif", encode(rgb, "JPEG", quality=95), size, pixels=exact, tolerance=12)
    if features.check("avif"):
        avif = encode(rgb, "AVIF", quality=95)
        write("photo.avif", avif, size, pixels=exact, tolerance=12, served=False)
    heic = b"\0\0\0\x18ftypheic" + bytes(90)
    if importlib.util.find_spec("pillow_heif"):
        write("cut.heic", heic, None, "damaged")
        import pillow_heif

        buffer = io.BytesIO()
        pillow_heif.from_pillow(rgb).save(buffer, quality=95)
        phone = buffer.getvalue()
        write("phone.heic", phone, size, pixels=exact, tolerance=16, served=False)
    else:
        write("cut.heic", heic, None, "Reading HEIC needs pillow_heif")
    write("cut.tiff", deep_tiff[:40], None, "damaged")

    # Turned cameras.
    for orientation in range(1, 9):
        for kind, options, tolerance in (
            ("JPEG", {"quality": 95}, 12),
            ("PNG", {}, 0),
            ("WEBP", {"lossless": True}, 0),
        ):
            exif = Image.Exif()
            exif[0x010F], exif[0x0112] = "a camera", orientation
            data = encode(rgb, kind, exif=exif, **options)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            turned = rgb if orientation == 1 else _turned(rgb, orientation)
            assert upright.size == turned.size
            name = f"orientation {orientation}.{kind.lower()}".replace("jpeg", "jpg")
            pixels = np.asarray(turned)
            write(name, data, turned.size, pixels=pixels, tolerance=tolerance)
    for name, block in {
        "orientation 9": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0",
        "EXIF cut": b"Exif\0\0MM\0*\0\0\0\x08\0\3\1\x12\0\3",
        "EXIF elsewhere": b"Exif\0\0MM\0*\xff\xff\xff\xff",
        "EXIF of text": b"Exif\0\0hello",
    }.items():
        write(f"{name}.jpg", encode(rgb, "JPEG", exif=block), size)

    # Names.
    names = ["with spaces.png", "quo'te\"s.png", "new\nline.png", "füße 日本語 🙂.png", "-dash.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"no UTF-8 \xff\xfe.png"))
    for name in names:
        write(name, encode(rgb, "PNG"), size, pixels=exact)

    # What is no file, or cannot be opened.
    (folder / "link to nothing.png").symlink_to(folder / "nothing.png")
    items["link to nothing.png"] = Item(None, "cannot be read: the link is broken")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    items["circle.png"] = Item(None, "cannot be read: ")
    os.mkfifo(folder / "pipe.png")
    items["pipe.png"] = Item(None, "cannot be read: not a regular file")
    (folder / "link.png").symlink_to(folder / "LOUD.PNG")
    items["link.png"] = Item(size, pixels=exact)
    (folder / "a folder.jpg").mkdir()
    write("a folder.jpg/inside.png", encode(rgb, "PNG"), size, pixels=exact)
    return items


def _turned(image, orientation):
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[orientation]
    return image.transpose(method)
