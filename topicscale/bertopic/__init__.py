"""BERTopic models, as folders of JSON and safetensors: they come in as sites and go out for BERTopic's users.

``folder`` reads and checks the files, ``counts`` turns c-TF-IDF weights back into counts, ``read`` makes a store of
topics, ``write`` makes a folder of a store, and ``lacking`` says what serves in the place of what BERTopic alone has.
The format is BERTopic 0.17's (its ``_save_utils.py``). Nothing is unpickled and no code of a model is run; every text in
the files is taken for what it is, a text.
"""
