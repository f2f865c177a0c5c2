"""Which sets `torchvision:NAME` can stand for, and why others cannot."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from wiseft_cli.data.from_torchvision.facts import TorchvisionSet
from wiseft_cli.data.from_torchvision.file_sets import FILE_SETS
from wiseft_cli.data.from_torchvision.picture_sets import PICTURE_SETS
from wiseft_cli.errors import UsageError

TORCHVISION_SETS: Mapping[str, TorchvisionSet] = dict(sorted({**FILE_SETS, **PICTURE_SETS}.items()))

_BOXES = "its images are labelled with boxes or masks"
_CAPTIONS = "its images have captions"
_PAIRS = "it is made of pairs of images"
_FLOW = "it is for optical flow or stereo"
_VIDEO = "it is made of videos"
_NO_SET = "it is a tool, no set"
_LSUN = "it is read from a database that keeps a pickled index"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("CelebA",), "each of its images has forty attributes"),
    **dict.fromkeys(("CocoDetection", "Kitti", "VOCDetection", "WIDERFace"), _BOXES),
    **dict.fromkeys(("Cityscapes", "SBDataset", "VOCSegmentation"), _BOXES),
    **dict.fromkeys(("CocoCaptions", "Flickr30k", "Flickr8k", "SBU"), _CAPTIONS),
    **dict.fromkeys(("LFWPairs", "PhotoTour"), _PAIRS),
    **dict.fromkeys(("HMDB51", "Kinetics", "MovingMNIST", "UCF101"), _VIDEO),
    **dict.fromkeys(("FlyingChairs", "FlyingThings3D", "HD1K", "KittiFlow", "Sintel"), _FLOW),
    **dict.fromkeys(("CREStereo", "CarlaStereo", "ETH3DStereo", "FallingThingsStereo"), _FLOW),
    **dict.fromkeys(("InStereo2k", "Kitti2012Stereo", "Kitti2015Stereo"), _FLOW),
    **dict.fromkeys(("Middlebury2014Stereo", "SceneFlowStereo", "SintelStereo"), _FLOW),
    **dict.fromkeys(("LSUN", "LSUNClass"), _LSUN),
    **dict.fromkeys(("DatasetFolder", "FakeData", "ImageFolder", "VisionDataset"), _NO_SET),
    "ImageNet": "it unpacks archives where it is pointed at; the set goes by the name imagenet",
}
"""What torchvision also has, and why it is no set of classes."""


def find_torchvision_set(class_name: str) -> TorchvisionSet:
    """Return what is known of one of torchvision's sets.

    Raises:
        UsageError: torchvision has none of that name, with names that are near; or it is no set
            with one class an image.
    """
    facts = TORCHVISION_SETS.get(class_name)
    if facts is not None:
        return facts
    if class_name in REFUSED:
        raise UsageError(
            f"torchvision's {class_name} cannot be taken as images with one class each:"
            f" {REFUSED[class_name]}",
            hint="list its images with a label each in a manifest",
        )
    of_lower = {name.lower(): name for name in (*TORCHVISION_SETS, *REFUSED)}
    near = difflib.get_close_matches(class_name.lower(), of_lower, n=5, cutoff=0.6)
    names = ", ".join([of_lower[name] for name in near] or TORCHVISION_SETS)
    raise UsageError(
        f"torchvision has no set of classes {class_name!r} that is known here;"
        f" {'near it are' if near else 'there are'} {names}"
    )
