from mmm_fusion.testing import FusionContract
from mmm_fusion_film import Film


class TestFilm(FusionContract):
    method = Film
