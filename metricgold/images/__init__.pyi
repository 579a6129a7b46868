from .camera import (
    FOV_DEG as FOV_DEG,
    crop_intrinsics as crop_intrinsics,
    fit_pinhole as fit_pinhole,
    focal_px_from_35mm as focal_px_from_35mm,
    focal_px_from_fov as focal_px_from_fov,
    intrinsics_from as intrinsics_from,
    mirror_intrinsics as mirror_intrinsics,
    normals_from_depth as normals_from_depth,
    pinhole as pinhole,
    pixel_centres as pixel_centres,
    planar_from_ray_distance as planar_from_ray_distance,
    points_from_depth as points_from_depth,
    rays_from_intrinsics as rays_from_intrinsics,
    relative_focal as relative_focal,
    resize_intrinsics as resize_intrinsics,
)
from .colours import (
    DEPTH_COLOURS as DEPTH_COLOURS,
    ERROR_COLOURS as ERROR_COLOURS,
    RANGE_WITHOUT_DEPTH_M as RANGE_WITHOUT_DEPTH_M,
    WORST_SHOWN as WORST_SHOWN,
    colour_depth as colour_depth,
    colour_error as colour_error,
    colour_range as colour_range,
    colour_share as colour_share,
    has_depth as has_depth,
    metre_ticks as metre_ticks,
    png_bytes as png_bytes,
    widen_range as widen_range,
)
from .depth_files import (
    DepthFile as DepthFile,
    DepthFileKind as DepthFileKind,
    read_depth as read_depth,
    read_depth_exr as read_depth_exr,
    read_depth_npz as read_depth_npz,
    read_depth_tiff as read_depth_tiff,
    read_exr_channels as read_exr_channels,
    read_log_depth_png as read_log_depth_png,
    read_mm_depth_png as read_mm_depth_png,
    read_normals_png as read_normals_png,
    read_uncertainty_png as read_uncertainty_png,
    write_depth_exr as write_depth_exr,
    write_depth_npz as write_depth_npz,
    write_depth_tiff as write_depth_tiff,
    write_log_depth_png as write_log_depth_png,
    write_mm_depth_png as write_mm_depth_png,
    write_normals_png as write_normals_png,
    write_uncertainty_png as write_uncertainty_png,
)
from .flying_pixels import flying_pixels as flying_pixels
from .html import (
    ColourScale as ColourScale,
    css_gradient as css_gradient,
    data_uri as data_uri,
    depth_scale as depth_scale,
    format_metres as format_metres,
    load_template as load_template,
)
from .network_grid import NetworkGrid as NetworkGrid, TrainingSize as TrainingSize
from .panels import COLUMNS as COLUMNS, Example as Example, write_panels as write_panels
from .photo import (
    ASSUMED as ASSUMED,
    FocalFrom as FocalFrom,
    NotAnImage as NotAnImage,
    Photo as Photo,
    as_photo as as_photo,
    claims_image as claims_image,
    pixels_by_head as pixels_by_head,
    read_photo as read_photo,
    read_rgb as read_rgb,
)
from .pillow_settings import quieten_image_libraries as quieten_image_libraries, register_heif as register_heif
from .point_cloud import write_glb as write_glb, write_ply as write_ply
from .preview import draw_preview as draw_preview
