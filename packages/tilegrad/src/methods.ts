/**
 * Makes all operators methods of tensors in a browser's bundle, which leaves out those that nothing names: `import
 * 'tilegrad/methods'`. In Node, and where layers are used, all are there without it.
 *
 * @module methods
 */
import '@tilegrad/core/methods'
