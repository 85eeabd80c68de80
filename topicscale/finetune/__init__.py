"""Fine-tuning embedding models: recipes, the data they need, the base they train, and the training loop. No engine in here.

A *recipe* (:mod:`topicscale.finetune.recipe`) makes training examples of a table and names the loss; each is one file of
:mod:`topicscale.finetune.recipes`. A *step* is one training, of one recipe or of several together, each with data of its own;
steps run one after another.
"""
