"""What is specific to one kind of example: one room and one `Modality` for each kind.

A model does not know its modality; it takes tensors. The modality turns examples into these tensors, by
the same rules for training, evaluation and export:

    file → `examine` (facts, faults) → `open` → `preparation(framing)` → tensor → model

A **framing** says how: for images the size of the square and the crop, for clips the size of the log-mel
image, the sample rate and the window, for texts the vocabulary and the largest number of tokens. It is
stored with the model and contains its modality's name, so a loaded model reads examples as it did in
training. Data, in turn, know their modality by their reader (`data.files`). All other code asks one of the
two, and contains no branch on the kind of example: what does not apply to a modality (mirror images,
players) is absent there.

Modules here may import only `utils` and `errors`.
"""

# What other rooms use.
from keras_transfer.modalities.framing import Framing as Framing
from keras_transfer.modalities.modality import Modality as Modality
from keras_transfer.modalities.registry import find_modality as find_modality
from keras_transfer.modalities.registry import framing_from as framing_from
from keras_transfer.modalities.registry import framing_of_shape as framing_of_shape
from keras_transfer.modalities.registry import kinds_of_examples as kinds_of_examples
from keras_transfer.modalities.registry import kinds_of_files as kinds_of_files
from keras_transfer.modalities.registry import known_extensions as known_extensions
from keras_transfer.modalities.registry import modalities as modalities
from keras_transfer.modalities.registry import modality_in_memory as modality_in_memory
from keras_transfer.modalities.registry import modality_of_files as modality_of_files
from keras_transfer.modalities.registry import open_framing as open_framing
from keras_transfer.modalities.registry import plain_augmentation as plain_augmentation
from keras_transfer.modalities.registry import resolve_augmentation as resolve_augmentation
