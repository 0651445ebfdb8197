"""Makes the picture files in tests/fixtures/pictures that the image crate can't write itself.

Made with Pillow 13; run from the root of the repository: python tests/reference/pictures.py
"""

from pathlib import Path

from PIL import Image

OUT = Path("tests/fixtures/pictures")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    # Cyan 0, magenta 255, yellow 255, key 0: red.
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(OUT / "cmyk_red.jpg", quality=95)
    frames = [Image.new("RGB", (16, 16), colour) for colour in [(0, 200, 0), (0, 0, 200)]]
    frames[0].save(
        OUT / "animated_green_first.webp",
        save_all=True,
        append_images=frames[1:],
        duration=100,
        lossless=True,
    )
    frames[0].save(
        OUT / "animated_green_first.png", save_all=True, append_images=frames[1:], duration=100
    )


if __name__ == "__main__":
    main()
