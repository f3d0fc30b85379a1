"""A property worked out once for each object, and no object waits for another."""

import threading

from loraport.lazy_property import lazy_property


class Layer:
    """Two of them meet in the middle of their work, which they cannot where they share a lock."""

    meeting = threading.Barrier(2, timeout=5)

    @lazy_property
    def basis(self):
        """The doc string stays."""
        self.meeting.wait()
        return object()


def test_two_objects_work_at_the_same_time_and_each_once():
    layers, found = (Layer(), Layer()), {}
    threads = [threading.Thread(target=lambda one=one: found.setdefault(one, one.basis)) for one in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[layers[0]] is not found[layers[1]]
    assert all(one.basis is found[one] for one in layers), "asked again, nothing is made again"
    assert Layer.basis.__doc__ == "The doc string stays."
