"""Boxes and masks as people publish them: COCO, YOLO and Pascal VOC read, examined, mended and written."""
