/** The icons of this extension; `jp-icon3` in an SVG makes it follow the theme. */

import { LabIcon } from '@jupyterlab/ui-components';

import poolsSvg from '../style/icons/pools.svg';

export const poolsIcon = new LabIcon({ name: 'flyte-jupyter:pools', svgstr: poolsSvg });
