# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ros_helpers import ros_fixture, wait_until  # noqa: F401
from std_msgs.msg import UInt8MultiArray

from slam3r_ros.transport.bus import create_publisher, create_subscription, worker_of
from slam3r_ros.transport.clouds import cloud_to_cdr, from_cloud, to_cloud
from slam3r_ros.transport.images import from_image, to_image
from slam3r_ros.transport.messages import Adapter, register_adapter
from slam3r_ros.transport.sealing import Sealed
from slam3r_ros.values import Frame, Intrinsics, Keyframe, Pose


@dataclass(frozen=True)
class Parcel:
    """A value of another package."""

    data: Any
    label: str = ''


register_adapter(
    Parcel,
    Adapter(
        UInt8MultiArray,
        lambda value, frame_id: UInt8MultiArray(data=bytes(value.data)),
        lambda message: Parcel(np.frombuffer(message.data, np.uint8)),
    ),
)


class FakeCuda:
    """Stands in for torch: notes in which order events are recorded and waited for."""

    class Tensor:
        is_cuda = True

        def __init__(self, device, calls):
            self.device, self._calls = device, calls

        def record_stream(self, stream):
            self._calls.append(('in use on', self.device, stream))

    def __init__(self):
        self.calls, self.stream = [], 'one'
        self.cuda = SimpleNamespace(Event=self._event, current_stream=lambda device: self._stream(device))

    def _event(self):
        return SimpleNamespace(record=lambda stream: self.calls.append(('record', stream.device, stream.name)))

    def _stream(self, device):
        name = self.stream
        return SimpleNamespace(
            device=device, name=name, wait_event=lambda event: self.calls.append(('wait', device, name))
        )


def test_arrays_are_sealed_however_deep_they_lie():
    arrays = [np.zeros(3) for _ in range(6)]
    keyframe = Keyframe(Pose(0, 0, arrays[0]), Intrinsics(1, 1, 0, 0), arrays[1], arrays[2], arrays[3])
    Sealed(Parcel([keyframe, {'more': (arrays[4],)}]), 'me')
    for array in arrays[:5]:
        with pytest.raises(ValueError):
            array[0] = 1
    arrays[5][0] = 1


def test_the_readers_stream_waits_for_the_publishers(monkeypatch):
    torch = FakeCuda()
    monkeypatch.setitem(sys.modules, 'torch', torch)
    first, second, other = (torch.Tensor(device, torch.calls) for device in ('cuda:0', 'cuda:0', 'cuda:1'))
    value = Parcel((first, second, other))
    sealed = Sealed(value, 'me')
    assert sorted(torch.calls) == [('record', 'cuda:0', 'one'), ('record', 'cuda:1', 'one')]  # once for a device
    torch.calls.clear()
    torch.stream = 'two'
    assert sealed.open() is value
    waits = [(kind, device) for kind, device, *_ in torch.calls]
    assert waits == [(kind, device) for device in ('cuda:0', 'cuda:0', 'cuda:1') for kind in ('wait', 'in use on')]
    assert torch.calls[0] == ('wait', 'cuda:0', 'two')


def test_nothing_of_torch_is_needed(monkeypatch):
    monkeypatch.delitem(sys.modules, 'torch', raising=False)
    value = Parcel(np.zeros(2))
    assert Sealed(value, 'me').open() is value
    assert 'torch' not in sys.modules


def test_a_cuda_tensor_arrives_as_it_is_when_its_work_is_done(ros):
    torch = pytest.importorskip('torch')
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    sums = []

    def read(value):
        with torch.cuda.stream(torch.cuda.Stream()):
            sums.append((value, (value.data * 1).sum().item()))

    publisher = create_publisher(ros.node(node_name='one'), Parcel, 'parcels')
    # The node's thread delivers on a stream that is not the publisher's.
    create_subscription(ros.node(node_name='two'), Parcel, 'parcels', read)
    with torch.cuda.stream(torch.cuda.Stream()):
        data = torch.zeros(50_000_000, device='cuda')
        for _ in range(50):
            data += 1
        value = Parcel(data)
        publisher.publish(value)
    wait_until(lambda: sums)
    assert sums[0][0] is value and sums[0][1] == 50 * 50_000_000


def test_tensors_go_outside_too():
    torch = pytest.importorskip('torch')
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert to_image(torch.from_numpy(image), 1, 'a') == to_image(image, 1, 'a')
    np.testing.assert_array_equal(from_image(to_image(torch.from_numpy(image), 1, 'a')), image)
    points, colors = np.random.default_rng(0).random((4, 3), np.float32), image.reshape(-1, 3)[:4]
    tensors = torch.from_numpy(points), torch.from_numpy(colors)
    np.testing.assert_array_equal(from_cloud(to_cloud(*tensors, 1, 'a'))[0], points)
    assert cloud_to_cdr(*tensors, 1, 'a') == cloud_to_cdr(points, colors, 1, 'a')


def test_changes_are_named_once():
    array, other = np.zeros(4), np.zeros(4)
    view = array[:2]  # keeps its right to write
    sealed = Sealed(Parcel({'a': other, 'b': array}), 'me', watched=True)
    assert not sealed.changes()
    view[1] = 1
    assert sealed.changes() == [".data['b']"]
    assert not sealed.changes()
    assert not Sealed(Parcel(array), 'me').changes()


@pytest.mark.parametrize('how', ['in place', 'behind the back of torch'])
def test_changes_of_tensors_are_noticed(how):
    torch = pytest.importorskip('torch')
    array = np.zeros(4, np.float32)
    tensor = torch.from_numpy(array)
    sealed = Sealed(Parcel(tensor), 'me', watched=True)
    if how == 'in place':
        tensor += 0  # writes, though nothing is different
    else:
        array[0] = 1
    assert sealed.changes() == ['.data']


def test_tensors_of_inference_mode_are_watched_too():
    """They do not count writes."""
    torch = pytest.importorskip('torch')
    with torch.inference_mode():
        tensor = torch.zeros(4)
        sealed = Sealed(Parcel(tensor), 'me', watched=True)
        tensor += 1
    assert sealed.changes() == ['.data']


@pytest.mark.parametrize('offender', ['reader', 'publisher'])
def test_the_debug_mode_names_who_wrote(ros, monkeypatch, offender):
    monkeypatch.setenv('SLAM3R_BUS_DEBUG', '1')
    kept, seen = [], []

    def read(value):
        if offender == 'reader':
            view[0] = 7  # as from_dlpack would let it
        kept.append(value)

    nodes = [ros.node(node_name=name) for name in ('writer', 'innocent', 'culprit')]
    publisher = create_publisher(nodes[0], Frame, 'frames')
    create_subscription(nodes[1], Frame, 'other_frames', seen.append)
    create_subscription(nodes[2], Frame, 'frames', read)
    image = np.zeros((4, 4, 3), np.uint8)
    view = image[:1]
    publisher.publish(Frame(0, 0, image))
    wait_until(lambda: kept)
    if offender == 'reader':
        wait_until(lambda: worker_of(nodes[2]).last_error)
        assert worker_of(nodes[2]).last_error == '/frames: /culprit wrote to Frame.image after /writer published it'
        return
    worker_of(nodes[2]).call(lambda: None)
    view[0] = 7
    publisher.publish(Frame(1, 0, np.zeros((4, 4, 3), np.uint8)))
    error = worker_of(nodes[0]).last_error
    assert '/frames: /writer, or a reader that kept it, wrote to Frame.image' in error
    assert not worker_of(nodes[1]).last_error


def test_without_the_debug_mode_nothing_is_compared(ros, monkeypatch):
    monkeypatch.delenv('SLAM3R_BUS_DEBUG', raising=False)
    monkeypatch.setattr('slam3r_ros.transport.sealing._mark', lambda leaf: pytest.fail('compared'))
    seen, node = [], ros.node(node_name='one')
    publisher = create_publisher(node, Parcel, 'parcels')
    create_subscription(node, Parcel, 'parcels', seen.append)
    publisher.publish(Parcel(np.zeros(3)))
    wait_until(lambda: seen)
    assert not worker_of(node).last_error


def test_values_of_other_packages_travel_too(ros):
    inside, outside = [], []
    publisher = create_publisher(ros.node(node_name='one'), Parcel, 'parcels')
    create_subscription(ros.node(node_name='two'), Parcel, 'parcels', inside.append)
    create_subscription(ros.apart().node(node_name='far'), Parcel, 'parcels', outside.append)
    wait_until(lambda: publisher.outside_readers() == 1)
    wait_until(lambda: publisher.publish(Parcel(np.arange(5, dtype=np.uint8))) or outside)
    assert isinstance(inside[0], Parcel) and isinstance(outside[0], Parcel)
    assert outside[0].data.tolist() == [0, 1, 2, 3, 4] and not outside[0].data.flags.writeable


def test_what_has_no_message_is_refused_clearly(ros):
    with pytest.raises(TypeError, match='SimpleNamespace has no ROS message.*register_adapter'):
        create_publisher(ros.node(node_name='one'), SimpleNamespace, 'things')
