# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from slam3r_ros.transport import images
from slam3r_ros.transport.images import from_image, to_image
from slam3r_ros.video.pixels import PixelError
from slam3r_ros.video.undistort import DistortionError, Undistorter

RNG = np.random.default_rng(1)
RGB = RNG.integers(0, 256, (6, 7, 3)).astype(np.uint8)
GREY = np.repeat(RNG.integers(0, 256, (6, 7, 1)).astype(np.uint8), 3, axis=2)
ALPHA = np.full((6, 7, 1), 9, np.uint8)
ENCODED = {
    'rgb8': (RGB, RGB),
    'bgr8': (RGB[..., ::-1], RGB),
    'rgba8': (np.concatenate([RGB, ALPHA], axis=2), RGB),
    'bgra8': (np.concatenate([RGB[..., ::-1], ALPHA], axis=2), RGB),
    'mono8': (GREY[..., :1], GREY),
}


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', ENCODED)
def test_every_encoding_with_and_without_padded_rows(encoding, padding):
    pixels, expected = ENCODED[encoding]
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels + padding), 77, np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    message = Image(encoding=encoding, height=height, width=width, step=rows.shape[1], data=rows.tobytes())
    image = from_image(message)
    np.testing.assert_array_equal(image, expected)
    assert image.flags.c_contiguous


def flat(red, green, blue, width=8, height=6):
    return np.full((height, width, 3), (red, green, blue), np.uint8)


def luma_and_colours(image):
    """Return Y (H, W), U and V (H, W) of BT.601, 16 to 235, as cameras send them."""
    r, g, b = np.moveaxis(image.astype(float), -1, 0)
    y = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    u = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    v = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    return [np.round(each).astype(np.uint8) for each in (y, u, v)]


def interleaved(a, b):
    return np.stack([a, b], axis=-1).reshape(a.shape[0], -1)


def packed(encoding, image):
    """Return the rows of an image whose colours change from left to right only, in steps of two pixels."""
    y, u, v = luma_and_colours(image)
    if encoding in ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'):
        colours = np.stack([u[:, ::2], v[:, ::2]], axis=-1).reshape(y.shape)
        return interleaved(colours, y) if encoding in ('yuv422', 'uyvy') else interleaved(y, colours)
    if encoding in ('nv12', 'nv21'):
        first, second = (u, v) if encoding == 'nv12' else (v, u)
        return np.vstack([y, interleaved(first[::2, ::2], second[::2, ::2])])
    letters, mosaic = encoding.removeprefix('bayer_').removesuffix('8'), np.empty(y.shape, np.uint8)
    for i, letter in enumerate(letters):
        mosaic[i // 2 :: 2, i % 2 :: 2] = image[i // 2 :: 2, i % 2 :: 2, 'rgb'.index(letter)]
    return mosaic


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize('encoding', ['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12', 'nv21', 'bayer_rggb8',
                                      'bayer_bggr8', 'bayer_gbrg8', 'bayer_grbg8'])  # fmt: skip
def test_what_cameras_send(encoding, padding):
    image = np.hstack([flat(200, 60, 30), flat(20, 150, 90), flat(90, 40, 220)])
    rows = np.pad(packed(encoding, image), ((0, 0), (0, padding)), constant_values=77)
    message = Image(encoding=encoding, height=6, width=24, step=rows.shape[1], data=rows.tobytes())
    result = from_image(message)
    assert result.shape == image.shape
    inside = [3, 4, 11, 12, 19, 20]  # columns; demosaicing mixes neighbours at the edges
    np.testing.assert_allclose(result[2:4, inside].astype(int), image[2:4, inside], atol=3)


@pytest.mark.parametrize('big', [False, True])
def test_mono16_of_both_byte_orders(big):
    values = (GREY[..., 0].astype(np.uint16) << 8) + 77
    data = values.astype('>u2' if big else '<u2').tobytes()
    message = Image(encoding='mono16', height=6, width=7, step=14, data=data, is_bigendian=int(big))
    np.testing.assert_array_equal(from_image(message), GREY)


def test_vast_and_odd_images_are_refused():
    with pytest.raises(PixelError, match='image of 7x6 nv12: pairs of pixels'):
        from_image(Image(encoding='nv12', height=6, width=7, step=7, data=bytes(63)))
    data = np.zeros(5000 * 2000, np.uint8).tobytes()
    message = Image(encoding='mono8', height=2000, width=5000, step=5000)
    message.data.frombytes(data)
    with pytest.raises(PixelError, match='5000x2000 is too large; scale it to 9.4 megapixels or less'):
        from_image(message)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_a_vast_compressed_image_is_refused_before_it_is_decoded(suffix, monkeypatch):
    data = bytearray(cv2.imencode(suffix, RGB)[1].tobytes())
    if suffix == '.png':
        data[16:24] = (60_000).to_bytes(4) * 2
    else:
        at = data.index(b'\xff\xc0')
        data[at + 5 : at + 9] = (60_000).to_bytes(2) * 2
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(PixelError, match='60000x60000 is too large'):
        from_image(CompressedImage(format=suffix[1:], data=bytes(data)))


def test_a_cut_jpeg_is_not_filled_with_grey():
    noisy = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    data = cv2.imencode('.jpg', noisy)[1].tobytes()
    assert from_image(CompressedImage(format='jpeg', data=data + bytes(3))).shape == (64, 64, 3)
    with pytest.raises(PixelError, match='or broken'):
        from_image(CompressedImage(format='jpeg', data=data[: len(data) // 2]))


def test_an_image_goes_out_and_comes_back():
    message = to_image(RGB, 1_000_000_002, 'camera')
    assert (message.encoding, message.step, message.header.stamp.nanosec) == ('rgb8', 21, 2)
    np.testing.assert_array_equal(from_image(message), RGB)


def test_what_is_no_image_is_refused_clearly():
    with pytest.raises(PixelError, match="encoding '32FC1' is not supported"):
        from_image(Image(encoding='32FC1', height=1, width=1, step=4, data=[0] * 4))
    with pytest.raises(PixelError, match='image of 7x6 rgb8 has 3 bytes'):
        from_image(Image(encoding='rgb8', height=6, width=7, step=21, data=[0] * 3))
    with pytest.raises(PixelError, match='neither JPEG nor PNG'):
        from_image(CompressedImage(format='jpeg', data=[1, 2, 3]))


def test_cv_bridge_takes_what_is_unknown_here(monkeypatch):
    monkeypatch.setattr(images.interop, 'has_cv_bridge', lambda: True)
    monkeypatch.setattr(images.interop, 'convert_image', lambda message, encoding: RGB)
    assert from_image(Image(encoding='yuv444')) is RGB


def test_what_cv_bridge_does_not_know_either_is_refused_clearly(monkeypatch):
    class CvBridgeError(TypeError):
        """As in cv_bridge."""

    class CvBridge:
        def imgmsg_to_cv2(self, message, encoding):
            raise CvBridgeError('Unrecognized image encoding [magic]')

    monkeypatch.setattr(images.interop, 'has_cv_bridge', lambda: True)
    monkeypatch.setitem(sys.modules, 'cv_bridge', SimpleNamespace(CvBridge=CvBridge, CvBridgeError=CvBridgeError))
    with pytest.raises(PixelError, match="cv_bridge cannot turn 'magic' into rgb8: Unrecognized image encoding"):
        from_image(Image(encoding='magic'))


def test_compressed_images():
    data = cv2.imencode('.png', RGB[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(from_image(CompressedImage(format='png', data=data)), RGB)


def info(**kwargs):
    k = [400.0, 0.0, 319.5, 0.0, 410.0, 239.5, 0.0, 0.0, 1.0]
    p = [380.0, 0.0, 310.0, 0.0, 0.0, 390.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(**({'width': 640, 'height': 480, 'k': k, 'p': p, 'distortion_model': 'plumb_bob'} | kwargs))


def test_a_straight_lens_keeps_its_camera():
    lens = Undistorter.from_calibration(info(d=[0.0] * 5), 640, 480)
    assert lens.intrinsics == (400.0, 410.0, 319.5, 239.5)
    image = np.zeros((480, 640, 3), np.uint8)
    assert lens(image) is image


def test_a_calibration_of_another_size_is_scaled():
    assert Undistorter.from_calibration(info(), 320, 240).intrinsics == (200.0, 205.0, 159.5, 119.5)


def test_an_uncalibrated_camera_has_no_lens():
    assert Undistorter.from_calibration(info(k=[0.0] * 9), 640, 480) is None


def test_rectified_images_have_the_camera_of_p():
    lens = Undistorter.from_calibration(info(d=[-0.3, 0.1, 0.0, 0.0, 0.0]), 640, 480, rectified=True)
    assert lens.intrinsics == (380.0, 390.0, 310.0, 230.0)


def test_points_of_the_world_land_where_the_pinhole_camera_says():
    """Draw dots through a distorting lens, undistort, and look for them."""
    d = np.array([-0.25, 0.07, 0.001, -0.002, 0.0])
    K = np.array(info().k).reshape(3, 3)
    points = np.array([[x, y, 2.0] for x in (-0.8, 0.0, 0.9) for y in (-0.6, 0.1, 0.7)])
    pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, d)[0].reshape(-1, 2)
    image = np.zeros((480, 640, 3), np.uint8)
    for u, v in pixels:
        cv2.circle(image, (round(u * 16), round(v * 16)), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, shift=4)
    lens = Undistorter.from_calibration(info(d=d.tolist()), 640, 480)
    after = lens(image)[..., 0].astype(float)
    v, u = np.mgrid[:480, :640]
    for x, y, z in points:
        fx, fy, cx, cy = lens.intrinsics
        where = np.array([fx * x / z + cx, fy * y / z + cy])
        near = after * ((u - where[0]) ** 2 + (v - where[1]) ** 2 < 10**2)
        assert near.sum() > 0
        centre = np.array([(near * u).sum(), (near * v).sum()]) / near.sum()
        np.testing.assert_allclose(centre, where, atol=0.3)


def test_an_unknown_lens_is_refused_clearly():
    with pytest.raises(DistortionError, match="distortion model 'magic'"):
        Undistorter.from_calibration(info(d=[0.1] * 5, distortion_model='magic'), 640, 480)
